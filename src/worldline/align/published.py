"""The published objective (Geo4D eq. 4-10) minimised properly: to compare with the published procedure.

    L = L_p + 2 L_d + 0.005 L_t + 0.015 L_s,  window scales of geometric mean 0.5

with terms.PointMapTerm, DisparityTerm, RayTerm and SmoothnessTerm in their published form (specs/geo4d.md 3.6). Not
used by default: its focal is biased (see AlignConfig.objective).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.align.camera_terms import RayTerm, ScaleGaugeTerm, SmoothnessTerm
from worldline.align.energy import Energy, sample_depths, with_depth
from worldline.align.fuse import beside_ray, depth_sweep
from worldline.align.initialize import Start
from worldline.align.kernels import NormKernel
from worldline.align.rays import RayViews
from worldline.align.rotations import dot
from worldline.align.sampling import Samples
from worldline.align.schur import LMConfig, minimise
from worldline.align.state import State, make_columns
from worldline.align.terms import DisparityTerm, PointMapTerm, Term
from worldline.geometry.fit import scale_shift_l1
from worldline.geometry.pose import Similarity, rotation_angle_deg


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights and limits of the published code.

    Attributes:
        disparity: w2 of eq. 10.
        trajectory: w3.
        smoothness: w4.
        most_confident: confidence is clamped to this.
        least_disparity: disparities below this are ignored.
        worst_rotation_deg: ray cameras whose relative rotations are worse than this are left out.
    """

    disparity: float = 2.0
    trajectory: float = 0.005
    smoothness: float = 0.015
    most_confident: float = 10.0
    least_disparity: float = 0.05
    worst_rotation_deg: float = 4.0


@dataclass(frozen=True, kw_only=True)
class PublishedSolution:
    """A minimiser of the published objective.

    Attributes:
        state: all variables.
        costs: value of each term (weighted) on the pixel subset.
        ray_windows: windows whose trajectory takes part.
        disparity_windows: windows whose disparity takes part.
    """

    state: State
    costs: dict[str, float]
    ray_windows: tuple[int, ...]
    disparity_windows: tuple[int, ...]


def minimise_published(
    samples: Samples, xy: Float[Tensor, "T n 2"], start: Start, rays: RayViews | None, weights: PublishedWeights
) -> PublishedSolution:
    """Damped Gauss-Newton with eliminated depths on the pixel subset, the norms sharpened in three stages."""
    # 1. unit of the world, depths, scale and shift of disparity, trajectory alignment
    state = _scaled_state(start)
    state = with_depth(state, sample_depths(state, samples, xy))
    state, disparity_ok = _fit_disparity(state, samples, weights)
    rays = _valid_rays(state, rays, weights) if rays is not None else None
    if rays is not None:
        state = _fit_trajectory(state, rays)
    # 2. all variables together
    columns = make_columns(samples, len(state.centre), own_focal=False, dense_below=10**9)
    fixed = torch.zeros(columns.size, dtype=torch.bool)
    fixed[columns.camera[0]] = True
    total = float((samples.weight >= 0).sum())
    for eps, iterations in ((3e-2, 7), (3e-3, 5), (3e-4, 4)):
        terms = _terms(state, samples, disparity_ok, rays, weights, NormKernel(eps=eps), total)
        energy = Energy(terms, samples, xy, columns, fixed)
        state = minimise(energy, state, LMConfig(iterations=iterations, tolerance=1e-4)).state
    return PublishedSolution(
        state=state, costs=energy.costs(state),
        ray_windows=tuple(rays.window.unique().tolist()) if rays is not None else (),
        disparity_windows=tuple(torch.nonzero(disparity_ok).flatten().tolist()),
    )  # fmt: skip


def _terms(
    state: State, samples: Samples, disparity_ok: Bool[Tensor, " G"], rays: RayViews | None, weights: PublishedWeights,
    kernel: NormKernel, total: float,
) -> list[Term]:  # fmt: skip
    w = samples.weight.clamp(max=weights.most_confident)
    terms: list[Term] = [PointMapTerm(weight=w / total, kernel=kernel)]
    if samples.disparity is not None and bool(disparity_ok.any()):
        mask = (samples.disparity > weights.least_disparity) & disparity_ok[samples.window][:, None]
        terms.append(DisparityTerm(weight=mask.double() * weights.disparity / total, kernel=kernel))
    if rays is not None:
        B = len(rays.window)
        one = torch.ones(B, dtype=torch.float64)
        terms.append(
            RayTerm(pose=rays.pose, window=rays.window, slot=_slots(state, rays), weight=weights.trajectory * one,
                    turn_unit=2**0.5 * one, move_unit=one, kernel=NormKernel(eps=kernel.eps * 0.1))
        )  # fmt: skip
    terms.append(SmoothnessTerm(weight=weights.smoothness, kernel=NormKernel(eps=kernel.eps * 0.1)))
    return [*terms, ScaleGaugeTerm()]


def _scaled_state(start: Start) -> State:
    """The start with window scales of geometric mean 0.5."""
    factor = 0.5 / start.windows.scale.log().mean().exp()
    windows = Similarity(
        scale=start.windows.scale * factor,
        rotation=start.windows.rotation,
        translation=start.windows.translation * factor,
    )
    return State(
        rotation=start.rig.rotation, centre=start.rig.centre * factor, log_focal=start.rig.log_focal, windows=windows,
        log_depth=torch.zeros(len(start.rig.centre), 1, dtype=torch.float64),
    )  # fmt: skip


def _fit_disparity(state: State, samples: Samples, weights: PublishedWeights) -> tuple[State, Bool[Tensor, " G"]]:
    """Scale and shift of each window by least absolute deviations against 1/D; windows that do not fit are left out."""
    G = samples.num_windows
    fit, good = torch.zeros(G, 2, dtype=torch.float64), torch.zeros(G, dtype=torch.bool)
    fit[:, 0] = 1
    if samples.disparity is None:
        return replace(state, disparity=fit), good
    inverse = torch.exp(-state.log_depth)
    for k in range(G):
        views = samples.window == k
        d, z = samples.disparity[views].flatten(), inverse[samples.frame[views]].flatten()
        used = (samples.weight[views].flatten() > 0) & (d != 0)
        if int(used.sum()) < 8:
            continue
        step = max(1, int(used.sum()) // 500)
        s, b = scale_shift_l1(d[used][::step], z[used][::step])
        fit[k, 0], fit[k, 1] = s, b
        depth = 1 / (s * d + b).clamp_min(1e-5)
        ratio = torch.maximum(depth * z, 1 / (depth * z))
        sure = used & (d > weights.least_disparity)
        good[k] = bool((ratio[sure] < 1.25).double().mean() >= 0.3) if bool(sure.any()) else False
    return replace(state, disparity=fit), good


def _valid_rays(state: State, rays: RayViews, weights: PublishedWeights) -> RayViews | None:
    """Windows whose ray rotations agree with the cameras from frame to frame."""
    keep = torch.zeros(len(rays.window), dtype=torch.bool)
    for k in rays.window.unique().tolist():
        mine = rays.window == k
        R, Q = rays.pose[mine, :3, :3], state.rotation[_slots(state, rays)[mine]]
        if len(R) < 2:
            continue
        error = rotation_angle_deg(R[:-1].mT @ R[1:], Q[:-1].mT @ Q[1:])
        keep[mine] = bool(error.square().mean().sqrt() < weights.worst_rotation_deg)
    if not bool(keep.any()):
        return None
    return RayViews(
        window=rays.window[keep], frame=rays.frame[keep], pose=rays.pose[keep], log_focal=rays.log_focal[keep]
    )


def _slots(state: State, rays: RayViews) -> Tensor:
    """Camera of each ray view: its frame, or the only one."""
    return rays.frame if len(state.centre) > 1 else torch.zeros_like(rays.frame)


def _fit_trajectory(state: State, rays: RayViews) -> State:
    """A_k puts the window's first ray camera on the global one; kappa_k starts as the window's scale."""
    a = Similarity(
        scale=state.windows.scale.clone(),
        rotation=state.windows.rotation.clone(),
        translation=torch.zeros_like(state.windows.translation),
    )
    for k in rays.window.unique().tolist():
        i = int(torch.nonzero(rays.window == k)[0, 0])
        slot = int(_slots(state, rays)[i])
        turn = state.rotation[slot] @ rays.pose[i, :3, :3].T
        a.rotation[k] = turn
        a.translation[k] = state.centre[slot] - a.scale[k] * turn @ rays.pose[i, :3, 3]
    return replace(state, trajectory=a)


def published_depth(
    q: Float[Tensor, "k *p 3"], weight: Float[Tensor, "k *p"], ray: Float[Tensor, "*p 3"],
    inverse: Float[Tensor, "k *p"] | None, inverse_weight: Float[Tensor, "k *p"] | None, sweeps: int = 5,
) -> Float[Tensor, "*p"]:  # fmt: skip
    """Depth of each pixel that minimises  sum w |D a - q_k| + sum w' |1/D - delta_k|  (specs/geo4d.md 6.3 (3)).

    Re-weighted Newton steps on ln D, each kept only where it lowers the pixel's cost.

    Args:
        q: points of the windows in the camera.
        weight: their weights.
        ray: camera rays with z = 1.
        inverse: s_k d_k + b_k of the windows, or None.
        inverse_weight: weights of the disparity.
        sweeps: number of steps.
    """
    depth = depth_sweep(q, weight, ray, 4)
    fallback = depth[depth > 0].median() if bool((depth > 0).any()) else torch.ones_like(depth).mean()
    x = torch.where(depth > 1e-3 * fallback, depth, fallback).log()
    square = dot(ray, ray)
    along, aside = beside_ray(q, ray, square)

    def cost(x: Tensor) -> Tensor:
        depth = x.exp()
        value = (weight * (square * (depth - along) ** 2 + aside).sqrt()).sum(0)
        if inverse is not None and inverse_weight is not None:
            value = value + (inverse_weight * (1 / (depth + 1e-6) - inverse).abs()).sum(0)
        return value

    current, damping = cost(x), torch.zeros_like(x)
    for _ in range(sweeps):
        depth = x.exp()
        off = depth - along
        omega = weight / (square * off**2 + aside).sqrt().clamp_min(1e-6)
        scale = square * depth
        g, h = scale * (omega * off).sum(0), scale * depth * omega.sum(0)
        if inverse is not None and inverse_weight is not None:
            z = 1 / (depth + 1e-6)
            omega = inverse_weight / (z - inverse).abs().clamp_min(1e-6)
            g, h = g - (omega * (z - inverse) * z).sum(0), h + (omega * z * z).sum(0)
        trial = x - (g / (h * (1 + damping)).clamp_min(1e-30)).clamp(-0.5, 0.5)
        new = cost(trial)
        better = new < current
        x, current = torch.where(better, trial, x), torch.where(better, new, current)
        damping = torch.where(better, damping * 0.3, damping * 4 + 1)
    return x.exp()


@dataclass(frozen=True, kw_only=True)
class PublishedFusion:
    """Depth by the published objective's point and disparity terms.

    Attributes:
        disparity: [G, 2] scale and shift of every window, or None.
        windows: windows whose disparity takes part.
        weights: weights and limits.
    """

    disparity: Float[Tensor, "G 2"] | None
    windows: tuple[int, ...]
    weights: PublishedWeights

    def depth(
        self, windows: list[int], q: Float[Tensor, "k F H W 3"], weight: Float[Tensor, "k F H W"],
        disparity: list[Tensor | None], ray: Float[Tensor, "F H W 3"],
    ) -> Float[Tensor, "F H W"]:  # fmt: skip
        """Depth along z."""
        w = weight.clamp(max=self.weights.most_confident)
        inverse, mask = torch.zeros_like(w), torch.zeros_like(w)
        for i, k in enumerate(windows):
            d = disparity[i]
            if d is not None and self.disparity is not None and k in self.windows:
                s, b = self.disparity[k].tolist()
                inverse[i] = s * d + b
                mask[i] = (d > self.weights.least_disparity) * self.weights.disparity
        return published_depth(q, w, ray, inverse, mask)
