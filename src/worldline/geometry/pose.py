"""Rigid poses SE(3) and similarities Sim(3): exponential maps, quaternions, composition.

Twists are (rho, omega): exp([rho, omega]) = [[Exp(omega), V(omega) rho], [0, 1]] (Sola et al., "A micro Lie theory",
eq. 172-174). All functions keep the dtype, take batch dimensions first and are differentiable, also at the identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_SERIES_BELOW = 0.25  # squared angle under which Taylor series replace the closed forms (cancellation)


def _coefficients(theta_sq: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A = sin t/t, B = (1-cos t)/t^2, C = (t-sin t)/t^3 and D = (1-A/2B)/t^2, as functions of t^2."""
    small = theta_sq < _SERIES_BELOW
    safe = torch.where(small, torch.ones_like(theta_sq), theta_sq)  # the unused branch must not make NaN gradients
    theta = safe.sqrt()
    a_far, b_far = theta.sin() / theta, 2 * (theta / 2).sin() ** 2 / safe
    c_far = (1 - a_far) / safe
    d_far = (1 - a_far / (2 * b_far)) / safe
    near = torch.where(small, theta_sq, torch.zeros_like(theta_sq))

    def series(first: int) -> Tensor:
        total = torch.zeros_like(near)
        for k in reversed(range(9)):
            total = total * near + (-1) ** k / math.factorial(2 * k + first)
        return total

    d_near = torch.zeros_like(near)
    for value in (1 / 74724249600, 691 / 1307674368000, 1 / 47900160, 1 / 1209600, 1 / 30240, 1 / 720, 1 / 12):
        d_near = d_near * near + value
    pick = lambda close, far: torch.where(small, close, far)  # noqa: E731
    return pick(series(1), a_far), pick(series(2), b_far), pick(series(3), c_far), pick(d_near, d_far)


def hat(w: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix [w]x with [w]x v = w x v."""
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*w.shape, 3)


def so3_exp(w: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of the rotation vector w (radians); Rodrigues' formula, stable at 0."""
    a, b, _, _ = _coefficients((w * w).sum(-1))
    k = hat(w)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    return eye + a[..., None, None] * k + b[..., None, None] * (k @ k)


def so3_log(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Rotation vector (radians, length in [0, pi]) of a rotation matrix; stable near 0 and near pi (by quaternion)."""
    q = matrix_to_quaternion(rotation)
    w, v = q[..., 0], q[..., 1:]
    norm_sq = (v * v).sum(-1)
    small = norm_sq < 1e-14 if q.dtype == torch.float64 else norm_sq < 1e-7
    norm = torch.where(small, torch.ones_like(norm_sq), norm_sq).sqrt()
    # atan2(n, w)/n = 1/w (1 - n^2/(3 w^2) + ...) near n = 0, where w is near 1
    safe_w = torch.where(small, w, torch.ones_like(w))
    factor = torch.where(small, (1 - norm_sq / (3 * safe_w**2)) / safe_w, torch.atan2(norm, w) / norm)
    return 2 * factor[..., None] * v


def se3_exp(xi: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 4 4"]:
    """Pose of the twist xi = (rho, omega)."""
    rho, omega = xi[..., :3], xi[..., 3:]
    a, b, c, _ = _coefficients((omega * omega).sum(-1))
    k = hat(omega)
    k2 = k @ k
    eye = torch.eye(3, dtype=xi.dtype, device=xi.device)
    rotation = eye + a[..., None, None] * k + b[..., None, None] * k2
    v = eye + b[..., None, None] * k + c[..., None, None] * k2
    return from_rt(rotation, (v @ rho[..., None])[..., 0])


def se3_log(pose: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 6"]:
    """Twist (rho, omega) of a pose; the inverse of se3_exp for angles below pi."""
    omega = so3_log(pose[..., :3, :3])
    _, _, _, d = _coefficients((omega * omega).sum(-1))
    k = hat(omega)
    eye = torch.eye(3, dtype=pose.dtype, device=pose.device)
    v_inverse = eye - k / 2 + d[..., None, None] * (k @ k)
    return torch.cat([(v_inverse @ pose[..., :3, 3:])[..., 0], omega], -1)


def from_rt(
    rotation: Float[Tensor, "*batch 3 3"], translation: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """The 4x4 matrix [R t; 0 1]."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], -2)


def inverse(pose: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Inverse of a rigid pose: [R^T, -R^T t]."""
    rotation = pose[..., :3, :3].mT
    return from_rt(rotation, -(rotation @ pose[..., :3, 3:])[..., 0])


def rotate(matrix: Float[Tensor, "*batch 3 3"], points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*out 3"]:
    """Multiply points [*batch, ..., 3] by one 3x3 matrix per batch entry; the points' dtype is kept.

    Raises:
        ValueError: the points have fewer batch dimensions than the matrices.
    """
    lead = matrix.ndim - 2
    if points.ndim - 1 < lead:
        raise ValueError(f"Points {list(points.shape)} need the {lead} leading dimensions of {list(matrix.shape)}.")
    extra = points.shape[lead:-1]
    flat = points.reshape(*points.shape[:lead], math.prod(extra), 3)
    out = flat @ matrix.to(points.dtype).mT
    return out.reshape(*out.shape[:-2], *extra, 3)


def spread(value: Tensor, lead: int, like: Tensor) -> Tensor:
    """Insert singleton dimensions after the first `lead` ones, so that value [*batch, c] broadcasts to like."""
    extra = like.ndim - 1 - lead
    return value.to(like.dtype).reshape(*value.shape[:lead], *([1] * extra), *value.shape[lead:])


def transform(pose: Float[Tensor, "*batch 4 4"], points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*out 3"]:
    """Apply poses [*batch, 4, 4] to points [*batch, ..., 3]; the points' dtype is kept."""
    turned = rotate(pose[..., :3, :3], points)
    return turned + spread(pose[..., :3, 3], pose.ndim - 2, turned)


def quaternion_to_matrix(wxyz: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of a quaternion (w, x, y, z), normalised first."""
    w, x, y, z = torch.nn.functional.normalize(wxyz, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(*wxyz.shape[:-1], 3, 3)


def matrix_to_quaternion(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion (w, x, y, z) with w >= 0 of a rotation matrix; accurate for every angle."""
    r = [[rotation[..., i, j] for j in range(3)] for i in range(3)]
    wx, wy, wz = r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]
    xy, xz, yz = r[1][0] + r[0][1], r[0][2] + r[2][0], r[2][1] + r[1][2]
    ww, xx = 1 + r[0][0] + r[1][1] + r[2][2], 1 + r[0][0] - r[1][1] - r[2][2]
    yy, zz = 1 - r[0][0] + r[1][1] - r[2][2], 1 - r[0][0] - r[1][1] + r[2][2]
    # rows of 4 q q^T: each is the quaternion times one of its entries; the row of the largest entry is well scaled
    rows = torch.stack(
        [torch.stack(row, -1) for row in ([ww, wx, wy, wz], [wx, xx, xy, xz], [wy, xy, yy, yz], [wz, xz, yz, zz])], -2
    )
    best = torch.stack([ww, xx, yy, zz], -1).argmax(-1)
    chosen = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :]
    q = torch.nn.functional.normalize(chosen, dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


def rotation_angle_deg(a: Float[Tensor, "*batch 3 3"], b: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Angle between two rotations in degrees, in [0, 180]."""
    return torch.rad2deg(so3_log(a.mT @ b).norm(dim=-1))


def relative_to_first(cam2world: Float[Tensor, "T 4 4"]) -> Float[Tensor, "T 4 4"]:
    """The same cameras in the frame of the first one, whose pose becomes the identity."""
    return inverse(cam2world[:1]) @ cam2world


def interpolate(
    pose_a: Float[Tensor, "*batch 4 4"], pose_b: Float[Tensor, "*batch 4 4"], fraction: float | Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch 4 4"]:
    """Pose between two poses: rotation on the shortest arc, centre on the straight line; fraction 0 gives pose_a."""
    f = torch.as_tensor(fraction, dtype=pose_a.dtype, device=pose_a.device)[..., None]
    ra, rb, ta, tb = pose_a[..., :3, :3], pose_b[..., :3, :3], pose_a[..., :3, 3], pose_b[..., :3, 3]
    return from_rt(ra @ so3_exp(f * so3_log(ra.mT @ rb)), (1 - f) * ta + f * tb)


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """The map x -> scale * rotation x + translation, batched.

    Attributes:
        scale: [*batch] positive.
        rotation: [*batch, 3, 3].
        translation: [*batch, 3].
    """

    scale: Float[Tensor, "*batch"]
    rotation: Float[Tensor, "*batch 3 3"]
    translation: Float[Tensor, "*batch 3"]

    @classmethod
    def identity(cls, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Similarity:
        """The similarity that changes nothing."""
        eye = torch.eye(3, dtype=dtype, device=device)
        return cls(scale=eye[0, 0].clone(), rotation=eye, translation=torch.zeros_like(eye[0]))

    def apply(self, points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*out 3"]:
        """Points [*batch, ..., 3] in the target frame; the points' dtype is kept."""
        moved = self.apply_vector(points)
        return moved + spread(self.translation, self.scale.ndim, moved)

    def apply_vector(self, vectors: Float[Tensor, "*any 3"]) -> Float[Tensor, "*out 3"]:
        """Displacements such as scene flow: scaled and rotated, not translated."""
        turned = rotate(self.rotation, vectors)
        return turned * spread(self.scale[..., None], self.scale.ndim, turned)

    def apply_pose(self, cam2world: Float[Tensor, "*any 4 4"]) -> Float[Tensor, "*out 4 4"]:
        """Cameras [*batch, ..., 4, 4] in the target frame; stay rigid: (R R_c, s R c + t)."""
        columns = self.apply_vector(cam2world[..., :3, :3].mT).mT  # columns of R_c are vectors
        size = spread(self.scale[..., None], self.scale.ndim, columns[..., 0])[..., None]
        return from_rt(columns / size, self.apply(cam2world[..., :3, 3]))

    def inverse(self) -> Similarity:
        """The similarity that undoes this one."""
        rotation = self.rotation.mT
        scale = 1 / self.scale
        translation = -scale[..., None] * (rotation @ self.translation[..., None])[..., 0]
        return Similarity(scale=scale, rotation=rotation, translation=translation)

    def compose(self, other: Similarity) -> Similarity:
        """Chain two similarities, this one after the other: x -> self(other(x))."""
        turned = (self.rotation @ other.translation[..., None])[..., 0]
        return Similarity(
            scale=self.scale * other.scale,
            rotation=self.rotation @ other.rotation,
            translation=self.scale[..., None] * turned + self.translation,
        )

    def matrix(self) -> Float[Tensor, "*batch 4 4"]:
        """The 4x4 matrix [sR t; 0 1]."""
        return from_rt(self.scale[..., None, None] * self.rotation, self.translation)
