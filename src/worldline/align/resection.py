"""First cameras from world points: focal by a sweep, poses from DLT moments.

Pixel (x, y), measured from the principal point, sees X when  P = diag(f, f, 1) R^T [I | -c]  makes both rows of
e = (x p3.X - p1.X, y p3.X - p2.X) vanish. sum w |e|^2 = p^T A p is a quadratic form whose 12 x 12 matrix A holds only
four moments sum w {1, x, y, x^2+y^2} X X^T per frame; c is eliminated exactly and R found by Gauss-Newton on SO(3), at
no cost per pixel. Weights w/q_z^2 turn e into the reprojection error; a graduated Geman-McClure kernel rejects
outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.align.rotations import cayley
from worldline.align.synchronize import masked_quantile
from worldline.geometry.pose import hat


@dataclass(frozen=True, kw_only=True)
class Rig:
    """Cameras being solved: one pose per slot, one focal per slot or one for all.

    Attributes:
        rotation: [C, 3, 3] camera to world.
        centre: [C, 3].
        log_focal: [C] or [1] natural log of the focal in pixels.
    """

    rotation: Float[Tensor, "C 3 3"]
    centre: Float[Tensor, "C 3"]
    log_focal: Float[Tensor, " F"]


def solve_poses(
    xy: Float[Tensor, "*b n 2"], points: Float[Tensor, "*b n 3"], weight: Float[Tensor, "*b n"],
    focal: Float[Tensor, "*b"], start: Float[Tensor, "*b 3 3"], rounds: int = 6, several: bool = True,
) -> tuple[Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3"], Float[Tensor, "*b n"]]:  # fmt: skip
    """Robust pose of each frame for a given focal.

    Args:
        xy: pixels from the principal point.
        points: world points of these pixels; weight 0 = none.
        weight: confidence.
        focal: pixels.
        start: camera-to-world rotations to begin with.
        rounds: reweightings, from a wide kernel to a narrow one.
        several: also start from the algebraic solutions, which may be far from `start`.

    Returns:
        rotation, centre, reprojection error [.., n] in pixels (infinite behind the camera and where weight is 0).
    """
    unit = focal[..., None]
    xy = xy / unit[..., None]  # ideal rays: focal 1 from here on
    middle = _weighted_mean(points, weight)
    size = _weighted_mean((points - middle[..., None, :]).norm(dim=-1, keepdim=True), weight).clamp_min(1e-9)
    local = (points - middle[..., None, :]) / size[..., None, :]
    usable = weight > 0
    robust, rotation, centre = weight, start, torch.zeros_like(middle)
    error = torch.zeros_like(weight)
    for step in range(rounds):
        rotation, centre = _pose_from_moments(xy, local, robust, rotation, several=several and step < 1)
        error, depth = _reprojection(xy, local, rotation, centre)
        error = torch.where(usable, error, torch.full_like(error, torch.inf))
        spread = masked_quantile(error, usable & error.isfinite(), 0.5).clamp_min(1e-7)[..., None]
        width = spread * (8.0 * 0.4**step + 2.0)
        kernel = 1 / (1 + (error / width) ** 2) ** 2
        near = masked_quantile(depth, usable & (depth > 0), 0.05).clamp_min(1e-3)[..., None]
        robust = weight * kernel / depth.clamp_min(near) ** 2 + 1e-12 * weight
    return rotation, centre * size + middle, error * unit


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight[..., None]).sum(-2) / weight.sum(-1, keepdim=True).clamp_min(1e-12)


def _reprojection(xy: Tensor, points: Tensor, rotation: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    q = (points - centre[..., None, :]) @ rotation
    depth = q[..., 2]
    error = (q[..., :2] / depth[..., None].clamp_min(1e-9) - xy).norm(dim=-1)
    return torch.where(depth > 1e-9, error, torch.full_like(error, torch.inf)), depth


def _pose_from_moments(
    xy: Tensor, points: Tensor, weight: Tensor, start: Tensor, several: bool
) -> tuple[Tensor, Tensor]:
    """Argmin over (R, c) of p^T A p for focal 1; tries several starting rotations when asked."""
    ones = torch.ones_like(points[..., :1])
    homogeneous = torch.cat([points, ones], -1)
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-30)
    x, y = xy[..., 0], xy[..., 1]
    b0, bx, by, bxx = (
        (homogeneous * (weight * factor)[..., None]).mT @ homogeneous for factor in (1.0, x, y, x * x + y * y)
    )
    zero = torch.zeros_like(b0)
    A = torch.cat([torch.cat([b0, zero, -bx], -1), torch.cat([zero, b0, -by], -1), torch.cat([-bx, -by, bxx], -1)], -2)
    r, t = torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10]), torch.tensor([3, 7, 11])
    tt = A[..., t[:, None], t] + 1e-12 * torch.eye(3, dtype=A.dtype)
    to_t = -torch.linalg.solve(tt, A[..., t[:, None], r])  # m4 = to_t vec(M)
    Q = A[..., r[:, None], r] + A[..., r[:, None], t] @ to_t
    Q = (Q + Q.mT) / 2
    starts = [start]
    if several:
        vectors = torch.linalg.eigh(Q).eigenvectors[..., :2]
        starts += [_nearest_rotation(vectors[..., i].unflatten(-1, (3, 3))).mT for i in (0, 1)]
    rotation = torch.stack(starts, -3)
    rotation = _descend(Q[..., None, :, :], rotation, 8 if several else 2)
    vec = rotation.mT.flatten(-2)
    cost = (vec * (Q[..., None, :, :] @ vec[..., None])[..., 0]).sum(-1)
    fourth = (to_t[..., None, :, :] @ vec[..., None])[..., 0]  # -R^T c
    depth = (rotation[..., :, 2] * b0[..., None, :3, 3]).sum(-1) + fourth[..., 2]  # mean q_z
    cost = torch.where(depth > 0, cost / depth.clamp_min(1e-9) ** 2, torch.full_like(cost, 1e30) - depth)
    best = cost.argmin(-1)[..., None]
    chosen = rotation.gather(-3, best[..., None, None].expand(*best.shape, 3, 3)).squeeze(-3)
    fourth = fourth.gather(-2, best[..., None].expand(*best.shape, 3)).squeeze(-2)
    return chosen, -(chosen @ fourth[..., None])[..., 0]


def _nearest_rotation(matrix: Tensor) -> Tensor:
    matrix = matrix * torch.where(torch.linalg.det(matrix) < 0, -1.0, 1.0)[..., None, None].to(matrix)
    u, _, vt = torch.linalg.svd(matrix)
    sign = torch.ones_like(matrix[..., 0])
    sign[..., 2] = torch.linalg.det(u @ vt).sign()
    return (u * sign[..., None, :]) @ vt


def _descend(Q: Tensor, rotation: Tensor, steps: int) -> Tensor:
    """Damped Gauss-Newton on SO(3) for vec(R^T)^T Q vec(R^T); a step that does not help is undone and damped."""
    generators = hat(torch.eye(3, dtype=Q.dtype))
    damping = torch.full(rotation.shape[:-2], 1e-6, dtype=Q.dtype)
    value = lambda R: (R.mT.flatten(-2) * (Q @ R.mT.flatten(-2)[..., None])[..., 0]).sum(-1)  # noqa: E731
    cost = value(rotation)
    eye = torch.eye(3, dtype=Q.dtype)
    for _ in range(steps):
        jacobian = torch.stack([(rotation @ g).mT.flatten(-2) for g in generators], -1)  # [.., 9, 3]
        QJ = Q @ jacobian
        H, g = jacobian.mT @ QJ, (QJ.mT @ rotation.mT.flatten(-2)[..., None])[..., 0]
        trace = torch.diagonal(H, dim1=-2, dim2=-1).mean(-1)[..., None, None]
        step = -torch.linalg.solve(H + (damping[..., None, None] * trace + 1e-18) * eye, g)
        candidate = rotation @ cayley(step)
        new = value(candidate)
        better = new < cost
        rotation = torch.where(better[..., None, None], candidate, rotation)
        cost, damping = torch.where(better, new, cost), torch.where(better, damping * 0.2, damping * 30 + 1e-6)
    return rotation


def sweep_focal(
    xy: Float[Tensor, "B n 2"], points: Float[Tensor, "B n 3"], weight: Float[Tensor, "B n"],
    start: Float[Tensor, "B 3 3"], bounds: tuple[float, float],
) -> tuple[float, float]:  # fmt: skip
    """Shared focal of some frames by a coarse-to-fine search over its logarithm.

    Returns:
        focal in pixels, and by how much (fraction) the error at the bounds exceeds the best one: near 0 = undetermined.
    """
    low, high = (torch.tensor(bound, dtype=torch.float64).log() for bound in bounds)
    grid = torch.linspace(float(low), float(high), 9, dtype=torch.float64)
    best, contrast, spacing = float(grid[4]), 0.0, float(grid[1] - grid[0])
    for level in range(2):
        focals = grid.exp()[:, None].expand(-1, len(xy))
        wide = [value.expand(len(grid), *value.shape) for value in (xy, points, weight, start)]
        _, _, error = solve_poses(wide[0], wide[1], wide[2], focals, wide[3], rounds=4)
        usable = (weight > 0).expand_as(error)
        scale = masked_quantile(error.flatten(1), usable.flatten(1), 0.5)
        limit = 3 * scale.min().clamp_min(1e-6)
        cost = (torch.minimum(error, limit) ** 2 * weight).sum((1, 2))
        if level == 0:
            contrast = float(torch.minimum(cost[0], cost[-1]) / cost.min().clamp_min(1e-30) - 1)
        best = float(grid[cost.argmin()])
        grid = (best + spacing * torch.linspace(-1, 1, 7, dtype=torch.float64)).clamp(float(low), float(high))
        spacing /= 3
    return float(torch.tensor(best).exp()), contrast
