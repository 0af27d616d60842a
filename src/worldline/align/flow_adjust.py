"""Flow bundle adjustment: cameras, focal length and inverse depths that reproduce optical flow.

Every frame i ("host") owns N points with ray x = K_i^-1 [u, 1] and inverse depth r; each is matched to pixel u_j in up
to K other frames. With world-to-camera poses T_i, R_ij = R_j R_i^T, t_ij = t_j - R_ij t_i and p = R_ij x + r t_ij:

    sum_ijn  w sigma^2/2 e/(1+e),   e = |pi_j(p) - u_j|^2 / sigma^2                      (Geman-McClure)
  + sum_in   w_r s_r^2/2 e/(1+e),   e = (log r - log r_prior - a_i)^2 / s_r^2            (optional depth prior)
  + w_f/2 (log focal - log usual focal)^2                                                (optional focal prior)

over poses (left perturbations, first one fixed), one factor g = log(focal / given focal), all r, and one scale a_i per
frame of the prior. Points are eliminated one by one by `worldline.align.schur`; the camera system is banded when the
clip is long. Jacobians, with J = dpi/dp: dr: J t_ij; pose j (translation, rotation): [r J, -J [p]x]; pose i:
[-r J R_ij, J R_ij [x]x]; dg: (pi - c) + J R_ij (-x_x, -x_y, 0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import no_type_check

import numpy as np
import torch
from numba import njit
from torch import Tensor

from worldline.align.schur import CameraBlock, Layout, LMConfig, Normal, PointBlock, minimise, solve_step

R_MIN, R_MAX = 1e-3, 50.0  # inverse depth in units of the median
POSE = 7  # parameters per frame: translation 3, rotation 3, scale of the depth prior 1


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Points of every frame and where they are in other frames.

    Attributes:
        pixels: [T, N, 2] float32, (x, y) of the points in their own frame.
        target: [T, K] int32, the other frame of each slot, -1 for none.
        goal: [T, K, N, 2] float32, (x, y) of the points in that frame.
        weight: [T, K, N] float32, trust in [0, 1].
    """

    pixels: np.ndarray
    target: np.ndarray
    goal: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def restrict(self, frames: np.ndarray) -> Matches:
        """The matches among the given frames (increasing indices), renumbered 0, 1, 2 ..."""
        number = np.full(len(self) + 1, -1, np.int32)
        number[frames] = np.arange(len(frames), dtype=np.int32)
        return Matches(
            pixels=self.pixels[frames],
            target=number[self.target[frames]],
            goal=self.goal[frames],
            weight=self.weight[frames],
        )


@dataclass(frozen=True, kw_only=True)
class FlowState:
    """What is solved for.

    Attributes:
        w2c: [T, 4, 4] float64 world-to-camera poses.
        intrinsics: [T, 4] float64 fx, fy, cx, cy in pixels.
        r: [T, N] float64 inverse depth of the points.
        log_scale: [T] float64, log of (r / r_prior) of each frame; 0 without a prior.
    """

    w2c: np.ndarray
    intrinsics: np.ndarray
    r: np.ndarray
    log_scale: np.ndarray

    def rescaled(self, factor: float) -> FlowState:
        """The same reconstruction with inverse depths multiplied by `factor`."""
        w2c = self.w2c.copy()
        w2c[:, :3, 3] /= factor
        return replace(self, w2c=w2c, r=self.r * factor, log_scale=self.log_scale + np.log(factor))


@dataclass(frozen=True, kw_only=True)
class DepthPrior:
    """Inverse depth from elsewhere, up to one scale per frame.

    Attributes:
        r: [T, N] float64, > 0 where known.
        weight: [T, N] float64, px^2 per unit of squared log ratio; 0 where unknown.
        sigma: log ratio beyond which the prior is taken for wrong.
    """

    r: np.ndarray
    weight: np.ndarray
    sigma: float = 0.3


@dataclass(frozen=True, kw_only=True)
class FlowProblem:
    """The energy of this module, for `schur.minimise`.

    Attributes:
        matches: what must be reproduced.
        sigma_px: reprojection error at which a match counts half.
        free_focal: whether the common focal factor is solved for.
        fixed: [T] bool, frames whose pose is known (always at least one).
        fix_translation: solve for rotations only.
        prior: depth prior, or None.
        focal_prior: (usual focal in pixels, px^2 per unit of squared log ratio to it), or None.
        banded: use the banded solver.
    """

    matches: Matches
    sigma_px: float
    free_focal: bool
    fixed: np.ndarray
    fix_translation: bool = False
    prior: DepthPrior | None = None
    focal_prior: tuple[float, float] | None = None
    banded: bool = False

    @property
    def layout(self) -> Layout:
        """Frames first, seven parameters each; the focal factor last."""
        frames = len(self.matches)
        free = np.tile(~self.fixed[:, None], (1, POSE))
        free[:, :3] &= not self.fix_translation
        free[:, 6] = self.prior is not None
        gap = np.abs(self.matches.target - np.arange(frames)[:, None])
        reach = int(gap[self.matches.target >= 0].max(initial=0))
        bandwidth = POSE * (2 * reach + 1) if self.banded else None
        fixed = torch.from_numpy(~np.append(free.ravel(), self.free_focal))
        return Layout(size=POSE * frames + 1, border=1, bandwidth=bandwidth, fixed=fixed)

    def linearize(self, state: FlowState) -> Normal:
        """Normal equations of all hosts; columns: own pose and scale, pose of each target, focal."""
        target = self.matches.target
        H, g, E, h, b, cost = _linearize(
            state.w2c, state.intrinsics, state.r, self.matches.pixels, target, self.matches.goal, self.matches.weight,
            self.sigma_px,
        )  # fmt: skip
        if self.prior is not None:
            cost += _add_prior(state, self.prior, H, g, E, h, b)
        columns = torch.from_numpy(_columns(target))
        E, h, b = torch.from_numpy(E), torch.from_numpy(h), torch.from_numpy(b)
        cameras = [CameraBlock(columns=columns, H=torch.from_numpy(H), g=torch.from_numpy(g))]
        if self.focal_prior is not None:
            ratio, weight = self._focal_ratio(state), self.focal_prior[1]
            cost += weight / 2 * ratio**2
            one = torch.ones(1, 1, dtype=torch.float64)
            last = torch.tensor([[POSE * len(target)]])
            cameras.append(CameraBlock(columns=last, H=weight * one[None], g=weight * ratio * one))
        return Normal(cost=float(cost), cameras=cameras, points=[PointBlock(columns=columns, E=E, h=h, b=b)])

    def _focal_ratio(self, state: FlowState) -> float:
        assert self.focal_prior is not None
        return float(np.log(state.intrinsics[:, 0].mean() / self.focal_prior[0]))

    def cost(self, state: FlowState) -> float:
        """The robust cost."""
        m = self.matches
        cost = _cost(state.w2c, state.intrinsics, state.r, m.pixels, m.target, m.goal, m.weight, self.sigma_px)
        if self.prior is not None:
            error, _ = _prior_error(state, self.prior)
            cost += float(np.sum(self.prior.weight * self.prior.sigma**2 / 2 * error / (1 + error)))
        if self.focal_prior is not None:
            cost += self.focal_prior[1] / 2 * self._focal_ratio(state) ** 2
        return float(cost)

    def retract(self, state: FlowState, dx: Tensor, dd: list[Tensor]) -> FlowState:
        """Apply one step."""
        from scipy.spatial.transform import Rotation

        step = dx.numpy()
        pose = step[:-1].reshape(-1, POSE)
        turn = Rotation.from_rotvec(pose[:, 3:6]).as_matrix()
        w2c = state.w2c.copy()
        w2c[:, :3, :3] = turn @ state.w2c[:, :3, :3]
        w2c[:, :3, 3] = np.einsum("tij,tj->ti", turn, state.w2c[:, :3, 3]) + pose[:, :3]
        intrinsics = state.intrinsics.copy()
        intrinsics[:, :2] *= np.exp(np.clip(step[-1], -0.2, 0.2))
        r = np.clip(state.r + dd[0].numpy(), np.maximum(R_MIN, state.r / 5), np.minimum(R_MAX, state.r * 5 + 0.1))
        return FlowState(w2c=w2c, intrinsics=intrinsics, r=r, log_scale=state.log_scale + pose[:, 6])


def adjust(problem: FlowProblem, state: FlowState, iterations: int) -> tuple[FlowState, float]:
    """Bundle adjustment: the state of least cost found, and its cost per unit of match weight (in sigma^2/2)."""
    result = minimise(problem, state, LMConfig(iterations=iterations, tolerance=1e-4))
    return result.state, relative_cost(problem, result.cost)


def reprojection_errors(matches: Matches, state: FlowState) -> np.ndarray:
    """Distance in pixels, [T, K, N] float32, between every match and where its point is seen; NaN without a match."""
    m = matches
    return _errors(state.w2c, state.intrinsics, state.r, m.pixels, m.target, m.goal, m.weight)


def relative_cost(problem: FlowProblem, cost: float) -> float:
    """Cost as a share in 0..1 of that of matches that all fail."""
    used = problem.matches.weight[problem.matches.target >= 0].sum(dtype=np.float64)
    return cost / max(1e-12, problem.sigma_px**2 / 2 * float(used))


def focal_variance(problem: FlowProblem, state: FlowState) -> float:
    """Variance of log focal per unit of residual variance (px^2), all else marginalised; inf if unobservable.

    This is the element of the inverse of the Schur complement, read off as the step that a unit gradient on it makes.
    """
    normal = replace(problem, free_focal=True).linearize(state)
    layout = replace(problem, free_focal=True).layout
    unit = CameraBlock(
        columns=torch.tensor([[layout.size - 1]]), H=torch.zeros(1, 1, 1).double(), g=-torch.ones(1, 1).double()
    )
    cameras = [replace(block, g=torch.zeros_like(block.g)) for block in normal.cameras] + [unit]
    points = [replace(block, b=torch.zeros_like(block.b)) for block in normal.points]
    step = solve_step(Normal(cost=0.0, cameras=cameras, points=points), layout, 1e-9)
    variance = float("inf") if step is None else float(step[0][-1])
    return variance if variance > 0 else float("inf")


def _columns(target: np.ndarray) -> np.ndarray:
    frames, slots = target.shape
    own = POSE * np.arange(frames)[:, None] + np.arange(POSE)[None]
    other = np.where(target[..., None] >= 0, POSE * target[..., None].astype(np.int64) + np.arange(6), -1)
    focal = np.full((frames, 1), POSE * frames)
    return np.concatenate([own, other.reshape(frames, 6 * slots), focal], axis=1).astype(np.int64)


def _prior_error(state: FlowState, prior: DepthPrior) -> tuple[np.ndarray, np.ndarray]:
    """Squared error over sigma^2, and the error, of every point; 0 where the prior is unknown."""
    known = prior.weight > 0
    ratio = np.log(np.maximum(state.r, R_MIN)) - np.log(np.where(known, prior.r, 1.0)) - state.log_scale[:, None]
    ratio = np.where(known, ratio, 0.0)
    return (ratio / prior.sigma) ** 2, ratio


def _add_prior(
    state: FlowState,
    prior: DepthPrior,
    H: np.ndarray,
    g: np.ndarray,
    E: np.ndarray,
    h: np.ndarray,
    b: np.ndarray,
) -> float:
    """Add the depth prior to the normal equations in place; its cost."""
    error, ratio = _prior_error(state, prior)
    weight = prior.weight / (1 + error) ** 2
    slope = 1 / np.maximum(state.r, R_MIN)
    H[:, 6, 6] += weight.sum(1)
    g[:, 6] -= (weight * ratio).sum(1)
    E[:, :, 6] -= weight * slope
    h += weight * slope**2
    b += weight * slope * ratio
    return float(np.sum(prior.weight * prior.sigma**2 / 2 * error / (1 + error)))


@njit(cache=True, nogil=True)
@no_type_check
def relative_pose(w2c_i, w2c_j):
    """(R_ij, t_ij): from camera i's frame to camera j's."""
    R = np.empty((3, 3))
    t = np.empty(3)
    for a in range(3):
        for c in range(3):
            R[a, c] = w2c_j[a, 0] * w2c_i[c, 0] + w2c_j[a, 1] * w2c_i[c, 1] + w2c_j[a, 2] * w2c_i[c, 2]
    for a in range(3):
        t[a] = w2c_j[a, 3] - (R[a, 0] * w2c_i[0, 3] + R[a, 1] * w2c_i[1, 3] + R[a, 2] * w2c_i[2, 3])
    return R, t


@njit(cache=True, nogil=True)
@no_type_check
def _cost(w2c, intrinsics, r, pixels, target, goal, weight, sigma):
    total = 0.0
    for i in range(target.shape[0]):
        fx, fy, cx, cy = intrinsics[i]
        for k in range(target.shape[1]):
            j = target[i, k]
            if j < 0:
                continue
            R, t = relative_pose(w2c[i], w2c[j])
            gx, gy, dx, dy = intrinsics[j]
            for n in range(pixels.shape[1]):
                w = weight[i, k, n]
                if w <= 0:
                    continue
                x, y = (pixels[i, n, 0] - cx) / fx, (pixels[i, n, 1] - cy) / fy
                px = R[0, 0] * x + R[0, 1] * y + R[0, 2] + r[i, n] * t[0]
                py = R[1, 0] * x + R[1, 1] * y + R[1, 2] + r[i, n] * t[1]
                pz = R[2, 0] * x + R[2, 1] * y + R[2, 2] + r[i, n] * t[2]
                if pz < 1e-3:
                    total += w * sigma * sigma / 2
                    continue
                ex = gx * px / pz + dx - goal[i, k, n, 0]
                ey = gy * py / pz + dy - goal[i, k, n, 1]
                e = (ex * ex + ey * ey) / (sigma * sigma)
                total += w * sigma * sigma / 2 * e / (1 + e)
    return total


@njit(cache=True, nogil=True)
@no_type_check
def _errors(w2c, intrinsics, r, pixels, target, goal, weight):
    errors = np.full(weight.shape, np.nan, np.float32)
    for i in range(target.shape[0]):
        for k in range(target.shape[1]):
            j = target[i, k]
            if j < 0:
                continue
            R, t = relative_pose(w2c[i], w2c[j])
            for n in range(pixels.shape[1]):
                if weight[i, k, n] <= 0:
                    continue
                x = (pixels[i, n, 0] - intrinsics[i, 2]) / intrinsics[i, 0]
                y = (pixels[i, n, 1] - intrinsics[i, 3]) / intrinsics[i, 1]
                pz = max(R[2, 0] * x + R[2, 1] * y + R[2, 2] + r[i, n] * t[2], 1e-3)
                px = (R[0, 0] * x + R[0, 1] * y + R[0, 2] + r[i, n] * t[0]) / pz
                py = (R[1, 0] * x + R[1, 1] * y + R[1, 2] + r[i, n] * t[1]) / pz
                ex = intrinsics[j, 0] * px + intrinsics[j, 2] - goal[i, k, n, 0]
                ey = intrinsics[j, 1] * py + intrinsics[j, 3] - goal[i, k, n, 1]
                errors[i, k, n] = np.sqrt(ex * ex + ey * ey)
    return errors


@njit(cache=True, nogil=True)
@no_type_check
def _match_rows(R, t, x, y, r, gx, gy, dx, dy, goal, own, other):
    """Residual of one match and its Jacobian rows.

    Fills own [2, 6] (host's pose) and other [2, 6] (target's pose); returns residual 2, d/dr 2, d/dfocal 2, valid.
    """
    ax = R[0, 0] * x + R[0, 1] * y + R[0, 2]
    ay = R[1, 0] * x + R[1, 1] * y + R[1, 2]
    az = R[2, 0] * x + R[2, 1] * y + R[2, 2]
    px, py, pz = ax + r * t[0], ay + r * t[1], az + r * t[2]
    if pz < 1e-3:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False
    ux, uy, iz = px / pz, py / pz, 1 / pz
    J = ((gx * iz, 0.0, -gx * ux * iz), (0.0, gy * iz, -gy * uy * iz))
    for a in range(2):
        j0, j1, j2 = J[a]
        other[a, 0], other[a, 1], other[a, 2] = r * j0, r * j1, r * j2
        # J_a (omega x p) = omega . (p x J_a), and J_a R (x x omega) = omega . (R^T J_a x x)
        other[a, 3] = py * j2 - pz * j1
        other[a, 4] = pz * j0 - px * j2
        other[a, 5] = px * j1 - py * j0
        m0 = j0 * R[0, 0] + j1 * R[1, 0] + j2 * R[2, 0]
        m1 = j0 * R[0, 1] + j1 * R[1, 1] + j2 * R[2, 1]
        m2 = j0 * R[0, 2] + j1 * R[1, 2] + j2 * R[2, 2]
        own[a, 0], own[a, 1], own[a, 2] = -r * m0, -r * m1, -r * m2
        own[a, 3] = -(y * m2 - m1)
        own[a, 4] = -(m0 - x * m2)
        own[a, 5] = -(x * m1 - y * m0)
    ex, ey = gx * ux + dx - goal[0], gy * uy + dy - goal[1]
    rx = J[0][0] * t[0] + J[0][2] * t[2]
    ry = J[1][1] * t[1] + J[1][2] * t[2]
    qx, qy, qz = -(R[0, 0] * x + R[0, 1] * y), -(R[1, 0] * x + R[1, 1] * y), -(R[2, 0] * x + R[2, 1] * y)
    fx = gx * ux + J[0][0] * qx + J[0][2] * qz
    fy = gy * uy + J[1][1] * qy + J[1][2] * qz
    return ex, ey, rx, ry, fx, fy, True


@njit(cache=True, nogil=True)
@no_type_check
def _linearize(w2c, intrinsics, r, pixels, target, goal, weight, sigma):
    frames, slots, points = target.shape[0], target.shape[1], pixels.shape[1]
    size = POSE + 6 * slots + 1
    H, g = np.zeros((frames, size, size)), np.zeros((frames, size))
    E, h, b = np.zeros((frames, points, size)), np.zeros((frames, points)), np.zeros((frames, points))
    row = np.zeros((2, 13))  # host pose 6, target pose 6, focal 1
    own, other = row[:, :6], row[:, 6:12]
    column = np.empty(13, np.int64)
    column[:6] = np.arange(6)
    column[12] = size - 1
    total = 0.0
    for i in range(frames):
        fx, fy, cx, cy = intrinsics[i]
        for k in range(slots):
            j = target[i, k]
            if j < 0:
                continue
            R, t = relative_pose(w2c[i], w2c[j])
            gx, gy, dx, dy = intrinsics[j]
            column[6:12] = POSE + 6 * k + np.arange(6)
            local = np.zeros((13, 13))
            for n in range(points):
                w = weight[i, k, n]
                if w <= 0:
                    continue
                x, y = (pixels[i, n, 0] - cx) / fx, (pixels[i, n, 1] - cy) / fy
                ex, ey, rx, ry, row[0, 12], row[1, 12], ok = _match_rows(
                    R, t, x, y, r[i, n], gx, gy, dx, dy, goal[i, k, n], own, other
                )
                if not ok:
                    total += w * sigma * sigma / 2
                    continue
                e = (ex * ex + ey * ey) / (sigma * sigma)
                total += w * sigma * sigma / 2 * e / (1 + e)
                q = w / ((1 + e) * (1 + e))
                h[i, n] += q * (rx * rx + ry * ry)
                b[i, n] += q * (rx * ex + ry * ey)
                for a in range(13):
                    ja, jb = q * row[0, a], q * row[1, a]
                    E[i, n, column[a]] += ja * rx + jb * ry
                    g[i, column[a]] += ja * ex + jb * ey
                    for c in range(13):
                        local[a, c] += ja * row[0, c] + jb * row[1, c]
            for a in range(13):
                for c in range(13):
                    H[i, column[a], column[c]] += local[a, c]
    return H, g, E, h, b, total
