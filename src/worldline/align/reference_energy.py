"""The published objective over the published variables (specs/geo4d.md 3.6, eq. 4, 5, 8, 9), for `reference` only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.geometry.pose import matrix_to_quaternion


@dataclass(frozen=True, kw_only=True)
class Data:
    """All windows at full resolution; every window has V frames.

    Attributes:
        frames: [G, V] frame of each view.
        points: [G, V, P, 3].
        weight: [G, V, P] clamped to 10.
        disparity: [G, V, P] or None.
        ray_pose: [G, V, 4, 4] or None.
        size: (H, W).
    """

    frames: Int[Tensor, "G V"]
    points: Float[Tensor, "G V P 3"]
    weight: Float[Tensor, "G V P"]
    disparity: Float[Tensor, "G V P"] | None
    ray_pose: Float[Tensor, "G V 4 4"] | None
    size: tuple[int, int]

    @property
    def num_frames(self) -> int:
        """N."""
        return int(self.frames.max()) + 1


@dataclass(kw_only=True)
class Variables:
    """The optimised tensors, in the published parametrisation; see `pose_matrices` and friends for their meaning.

    Attributes:
        log_depth: [N, P].
        quaternion: [N, 4] xyzw, normalised on use.
        translation: [N, 3] sign(t) log(1 + |t|).
        focal: [] 20 ln f.
        window: [G, 8] quaternion xyzw, signed-log translation, log scale.
        disparity: [G, 2] scale, shift.
        trajectory: [G, 8] quaternion xyzw, signed-log translation, log kappa.
    """

    log_depth: Tensor
    quaternion: Tensor
    translation: Tensor
    focal: Tensor
    window: Tensor
    disparity: Tensor
    trajectory: Tensor

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [
            self.log_depth,
            self.quaternion,
            self.translation,
            self.focal,
            self.window,
            self.disparity,
            self.trajectory,
        ]


def matrix(quaternion_xyzw: Tensor) -> Tensor:
    """Rotation matrices of quaternions x, y, z, w."""
    x, y, z, w = torch.nn.functional.normalize(quaternion_xyzw, dim=-1).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def signed_exp(t: Tensor) -> Tensor:
    """Inverse of `signed_log`."""
    return t.sign() * torch.expm1(t.abs())


def signed_log(t: Tensor) -> Tensor:
    """sign(t) log(1 + |t|), the published parametrisation of translations."""
    return t.sign() * torch.log1p(t.abs())


def xyzw(rotation: Tensor) -> Tensor:
    """Quaternions x, y, z, w of rotation matrices."""
    return matrix_to_quaternion(rotation).roll(-1, -1)


def window_transforms(window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sigma [G] (geometric mean 0.5), rotation, T: points map to sigma (R x + T)."""
    log_scale = window[:, 7]
    return 0.5 * torch.exp(log_scale - log_scale.mean()), matrix(window[:, :4]), signed_exp(window[:, 4:7])


def rays(data: Data, focal: Tensor) -> Tensor:
    """[P, 3] with z = 1; principal point (W/2, H/2), integer pixels."""
    height, width = data.size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xy = torch.stack([x - width / 2, y - height / 2], -1).flatten(0, 1).to(focal) / focal
    return torch.cat([xy, torch.ones_like(xy[:, :1])], -1)


def frobenius(a: Tensor, b: Tensor) -> Tensor:
    """|| a^T b - I ||_F."""
    eye = torch.eye(3, dtype=a.dtype)
    return ((a.mT @ b - eye).square().sum((-1, -2)) + 1e-24).sqrt()


def objective(data: Data, v: Variables, disparity_windows: Tensor, ray_windows: Tensor) -> dict[str, Tensor]:
    """The four terms, unweighted: points, disparity, trajectory, smoothness (eq. 4, 5, 8, 9).

    Args:
        data: windows.
        v: variables.
        disparity_windows: [G] bool, windows in the disparity term (all False: term is 0).
        ray_windows: [G] bool, windows in the trajectory term.
    """
    G, V, P = data.weight.shape
    rotation, centre = matrix(v.quaternion), signed_exp(v.translation)
    depth = v.log_depth.exp()
    world = (depth[..., None] * rays(data, torch.exp(v.focal / 20))) @ rotation.mT + centre[:, None]
    sigma, turn, shift = window_transforms(v.window)
    mapped = sigma[:, None, None] * (data.points.flatten(1, 2) @ turn.mT + shift[:, None])
    gap = (world[data.frames] - mapped.unflatten(1, (V, P))).norm(dim=-1)
    zero = torch.zeros((), dtype=depth.dtype)
    terms = {"points": (data.weight * gap).sum() / (G * V * P), "disparity": zero, "trajectory": zero}
    if bool(disparity_windows.any()) and data.disparity is not None:
        line = v.disparity[:, :1, None] * data.disparity + v.disparity[:, 1:, None]
        mask = (data.disparity > 0.05) & disparity_windows[:, None, None]
        error = (1 / (depth[data.frames] + 1e-6) - line).abs()
        terms["disparity"] = (mask * error).sum() / (G * V * P)
    if bool(ray_windows.any()) and data.ray_pose is not None:
        a, t = matrix(v.trajectory[:, :4])[:, None], signed_exp(v.trajectory[:, 4:7])[:, None]
        arm = v.trajectory[:, 7].exp()[:, None, None] * data.ray_pose[..., :3, 3].to(a)
        there = (a @ arm[..., None])[..., 0] + t
        angle = frobenius(a @ data.ray_pose[..., :3, :3].to(a), rotation[data.frames])
        move = ((centre[data.frames] - there).square().sum(-1) + 1e-24).sqrt()
        terms["trajectory"] = ((angle + move) * ray_windows[:, None]).sum()
    step = ((centre[1:] - centre[:-1]).square().sum(-1) + 1e-24).sqrt()
    terms["smoothness"] = (frobenius(rotation[:-1], rotation[1:]) + step).sum()
    return terms


def total(terms: dict[str, Tensor]) -> Tensor:
    """Weighted sum."""
    return terms["points"] + 2 * terms["disparity"] + 0.005 * terms["trajectory"] + 0.015 * terms["smoothness"]
