"""Flow bundle adjustment: cameras, focal length and inverse depths that reproduce optical flow.

Every frame i ("host") owns N points with ray x = K_i^-1 [u, 1] and inverse depth r; each is matched to pixel u_j in up
to K other frames. With world-to-camera poses T_i, R_ij = R_j R_i^T, t_ij = t_j - R_ij t_i and p = R_ij x + r t_ij:

    sum_ijn  w sigma^2/2 e/(1+e),   e = |pi_j(p) - u_j|^2 / sigma^2                      (Geman-McClure)
  + sum_in   w_r s_r^2/2 e/(1+e),   e = (log r - log r_prior - a_i)^2 / s_r^2            (optional depth prior)
  + w_f/2 (log focal - log usual focal)^2                                                (optional focal prior)

over poses (left perturbations, first one fixed), one factor g = log(focal / given focal), all r, and one scale a_i per
frame of the prior. Points are eliminated one by one by `worldline.align.schur`, a few hosts at a time, so that memory
does not grow with the clip but for the camera system, which is banded. Jacobians, with J = dpi/dp: dr: J t_ij; pose j
(translation, rotation): [r J, -J [p]x]; pose i: [-r J R_ij, J R_ij [x]x]; dg: (pi - c) + J R_ij (-x_x, -x_y, 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.align.flow_kernels import POSE as POSE
from worldline.align.flow_kernels import linearize_hosts, match_errors, point_system, robust_costs
from worldline.align.flow_kernels import relative_pose as relative_pose
from worldline.align.schur import (
    CameraBlock,
    CameraSystem,
    Layout,
    LMConfig,
    Normal,
    PointBlock,
    minimise,
    reduced_blocks,
)

R_MIN, R_MAX = 1e-3, 50.0  # inverse depth in units of the median
BLOCK = 16  # hosts whose derivatives are in memory at a time


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

    def linearize(self, state: FlowState) -> FlowLinear:
        """Normal equations of all hosts, a block of them at a time."""
        return FlowLinear(problem=self, state=state, cost=self.cost(state))

    def _focal_ratio(self, state: FlowState) -> float:
        assert self.focal_prior is not None
        return float(np.log(state.intrinsics[:, 0].mean() / self.focal_prior[0]))

    def cost(self, state: FlowState) -> float:
        """The robust cost."""
        m = self.matches
        cost = float(host_costs(m, state, self.sigma_px).sum())
        if self.prior is not None:
            for part in blocks(len(m)):
                error, _ = _prior_error(state, self.prior, part)
                cost += float(np.sum(self.prior.weight[part] * self.prior.sigma**2 / 2 * error / (1 + error)))
        if self.focal_prior is not None:
            cost += self.focal_prior[1] / 2 * self._focal_ratio(state) ** 2
        return cost

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


@dataclass(frozen=True, kw_only=True)
class FlowLinear:
    """The problem linearised at a state; derivatives live only while their block of hosts is worked on.

    Attributes:
        problem: what.
        state: where.
        cost: the robust cost there.
    """

    problem: FlowProblem
    state: FlowState
    cost: float

    def parts(self) -> Iterator[Normal]:
        """Normal equations of some hosts each; columns: own pose and scale, pose of each target, focal."""
        for hosts in blocks(len(self.problem.matches)):
            yield self._part(hosts)
        if self.problem.focal_prior is not None:
            yield Normal(cost=0.0, cameras=[self._usual_focal(*self.problem.focal_prior)])

    def _part(self, hosts: slice) -> Normal:
        matches, prior = self.problem.matches, self.problem.prior
        H, g, E, h, b = linearize_hosts(*self._arguments(), hosts.start, hosts.stop)
        if prior is not None:
            weight, ratio, slope = _prior_terms(self.state, prior, hosts)
            H[:, 6, 6] += weight.sum(1)
            g[:, 6] -= (weight * ratio).sum(1)
            E[:, :, 6] -= weight * slope
            h += weight * slope**2
            b += weight * slope * ratio
        columns = torch.from_numpy(_columns(matches.target, hosts))
        cameras = [CameraBlock(columns=columns, H=torch.from_numpy(H), g=torch.from_numpy(g))]
        E, h, b = torch.from_numpy(E), torch.from_numpy(h), torch.from_numpy(b)
        return Normal(cost=0.0, cameras=cameras, points=[PointBlock(columns=columns, E=E, h=h, b=b)])

    def _usual_focal(self, focal_px: float, weight: float) -> CameraBlock:
        one = torch.ones(1, 1, dtype=torch.float64)
        ratio = float(np.log(self.state.intrinsics[:, 0].mean() / focal_px))
        last = torch.tensor([[POSE * len(self.problem.matches)]])
        return CameraBlock(columns=last, H=weight * one[None], g=weight * ratio * one)

    def back_substitute(self, dx: Tensor, damping: float) -> list[Tensor]:
        """Steps of all inverse depths, [T, N], from the cameras' step; derivatives are made anew for it."""
        step = dx.numpy()
        pose, focal = step[:-1].reshape(-1, POSE), float(step[-1])
        result = np.zeros(self.state.r.shape)
        for hosts in blocks(len(result)):
            h, b = point_system(*self._arguments(), pose[:, :6], focal, hosts.start, hosts.stop)
            if self.problem.prior is not None:
                weight, ratio, slope = _prior_terms(self.state, self.problem.prior, hosts)
                h += weight * slope**2
                b += weight * slope * (ratio - pose[hosts, 6:])
            known = h > 0
            result[hosts][known] = -b[known] / (h[known] * (1 + damping))
        return [torch.from_numpy(result)]

    def _arguments(self) -> tuple[Any, ...]:
        state, m = self.state, self.problem.matches
        return (state.w2c, state.intrinsics, state.r, m.pixels, m.target, m.goal, m.weight, self.problem.sigma_px)


def blocks(count: int, size: int = BLOCK) -> list[slice]:
    """Slices of at most `size` frames that make up `count` of them."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def adjust(problem: FlowProblem, state: FlowState, iterations: int) -> tuple[FlowState, float]:
    """Bundle adjustment: the state of least cost found, and its cost per unit of match weight (in sigma^2/2)."""
    result = minimise(problem, state, LMConfig(iterations=iterations, tolerance=1e-4))
    return result.state, relative_cost(problem, result.cost)


def reprojection_errors(matches: Matches, state: FlowState, hosts: np.ndarray | None = None) -> np.ndarray:
    """Distance in pixels, [M, K, N] float32, between matches and where their points are seen; NaN without a match.

    `hosts` [M] says of which frames, by default all of them.
    """
    m, hosts = matches, np.arange(len(matches)) if hosts is None else hosts
    return match_errors(state.w2c, state.intrinsics, state.r, m.pixels, m.target, m.goal, m.weight, hosts)


def host_costs(matches: Matches, state: FlowState, sigma_px: float) -> np.ndarray:
    """Robust cost [T] of the matches of every host."""
    m = matches
    return robust_costs(state.w2c, state.intrinsics, state.r, m.pixels, m.target, m.goal, m.weight, sigma_px)


def relative_cost(problem: FlowProblem, cost: float) -> float:
    """Cost as a share in 0..1 of that of matches that all fail."""
    m = problem.matches
    used = sum(float(m.weight[part][m.target[part] >= 0].sum(dtype=np.float64)) for part in blocks(len(m)))
    return cost / max(1e-12, problem.sigma_px**2 / 2 * used)


def focal_variance(problem: FlowProblem, state: FlowState) -> float:
    """Variance of log focal per unit of residual variance (px^2), all else marginalised; inf if unobservable.

    This is the element of the inverse of the Schur complement, read off as the step that a unit gradient on it makes.
    """
    free = replace(problem, free_focal=True)
    system, layout = CameraSystem(free.layout), free.layout
    for part in free.linearize(state).parts():
        for columns, H, g in reduced_blocks(part, 1e-9):
            system.add(columns, H, torch.zeros_like(g))
    last, one = torch.tensor([[layout.size - 1]]), torch.ones(1, 1, dtype=torch.float64)
    system.add(last, torch.zeros(1, 1, 1, dtype=torch.float64), -one)
    step = system.solve()
    variance = float("inf") if step is None else float(step[-1])
    return variance if variance > 0 else float("inf")


def _columns(target: np.ndarray, hosts: slice) -> np.ndarray:
    """Columns [B, 7 + 6 K + 1] in the camera vector: the host's pose and scale, its targets' poses, the focal."""
    frames, part = len(target), target[hosts]
    own = POSE * np.arange(hosts.start, hosts.stop)[:, None] + np.arange(POSE)[None]
    other = np.where(part[..., None] >= 0, POSE * part[..., None].astype(np.int64) + np.arange(6), -1)
    focal = np.full((len(part), 1), POSE * frames)
    return np.concatenate([own, other.reshape(len(part), -1), focal], axis=1).astype(np.int64)


def _prior_error(state: FlowState, prior: DepthPrior, part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Squared error over sigma^2, and the error, of every point of some frames; 0 where the prior is unknown."""
    known = prior.weight[part] > 0
    ratio = np.log(np.maximum(state.r[part], R_MIN)) - np.log(np.where(known, prior.r[part], 1.0))
    ratio = np.where(known, ratio - state.log_scale[part, None], 0.0)
    return (ratio / prior.sigma) ** 2, ratio


def _prior_terms(state: FlowState, prior: DepthPrior, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Robust weight, log ratio and its derivative with respect to r of the depth prior, [B, N] each."""
    error, ratio = _prior_error(state, prior, part)
    return prior.weight[part] / (1 + error) ** 2, ratio, 1 / np.maximum(state.r[part], R_MIN)
