"""The default joint refinement: unbiased terms in units of their own noise, all cameras and windows at once.

In rounds: (1) measure the noise of points, disparity and rays, and how smoothly the camera really moves; (2) with these
frozen, lower the energy by Schur-eliminated Levenberg-Marquardt. Normalisations are never part of what is minimised, so
no error becomes cheaper by being moved away.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.align.camera_terms import RayTerm
from worldline.align.config import AlignConfig
from worldline.align.energy import Energy, sample_depths, with_depth
from worldline.align.initialize import Start
from worldline.align.kernels import CauchyKernel
from worldline.align.noise import (
    NORMAL_MEDIAN,
    RAYLEIGH_MEDIAN,
    ScaleTable,
    constant_scale,
    inflation,
    measure_scale,
    normal_scale,
)
from worldline.align.rays import RayViews
from worldline.align.rotations import dot
from worldline.align.sampling import Samples
from worldline.align.schur import LMConfig, minimise
from worldline.align.smoothness import by_evidence, first_guess
from worldline.align.state import Columns, State, make_columns
from worldline.align.synchronize import umeyama_batch
from worldline.align.terms import DisparityTerm, PointMapTerm, Term
from worldline.geometry.fit import scale_shift_l1
from worldline.geometry.pose import Similarity

_BLOCKS = (4, 6)
_INDEPENDENT = 0.8  # share of samples with errors of their own above which more samples are worth their time


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Frozen normalisations of one round.

    Attributes:
        lateral: standard deviation of points across the ray, in pixels, by confidence.
        along: along the ray, relative to the distance, by confidence.
        disparity: of the observed disparity of each window, by the disparity that is expected; or None.
        point_weight: samples that count / samples, points.
        disparity_weight: likewise, disparity.
    """

    lateral: ScaleTable
    along: ScaleTable
    disparity: tuple[ScaleTable, ...] | None
    point_weight: float
    disparity_weight: float


@dataclass(frozen=True, kw_only=True)
class Refined:
    """Result of the refinement.

    Attributes:
        state: all variables.
        noise: of the last round.
        notes: for the report.
    """

    state: State
    noise: Noise
    notes: dict[str, Any]


class Refinement:
    """The problem that stays the same over the rounds."""

    def __init__(
        self, samples: Samples, xy: Float[Tensor, "T n 2"], start: Start, rays: RayViews | None, size: tuple[int, int],
        fixed_pose: Bool[Tensor, " C"], fixed_focal: bool, config: AlignConfig,
    ) -> None:  # fmt: skip
        self.samples, self.xy, self.rays, self.size, self.config = samples, xy, rays, size, config
        self.used = samples.weight > 0
        self.columns = make_columns(samples, len(start.rig.centre), own_focal=len(start.rig.log_focal) > 1)
        self.fixed, self.fixed_focal = _fixed(self.columns, start, fixed_pose, fixed_focal), fixed_focal
        grid = (samples.uv / torch.tensor([size[1], size[0]]) * torch.tensor([_BLOCKS[1], _BLOCKS[0]])).long()
        self.block = (grid[..., 1].clamp(0, _BLOCKS[0] - 1) * _BLOCKS[1] + grid[..., 0].clamp(0, _BLOCKS[1] - 1))[
            samples.frame
        ]
        self.views = torch.zeros_like(samples.uv[..., 0]).index_add_(0, samples.frame, self.used.double())
        self.slot = samples.frame if len(start.rig.centre) > 1 else torch.zeros_like(samples.frame)

    def energy(self, terms: list[Term]) -> Energy:
        return Energy(terms, self.samples, self.xy, self.columns, self.fixed)

    def measure(self, state: State) -> Noise:
        """Noise of points and disparity from their residuals at this state."""
        s, geometry = self.samples, self.energy([]).geometry(state)
        axis, length, across, front = _split(geometry.residual, geometry.ray[s.frame])
        depth = geometry.depth[s.frame]
        f = state.log_focal.exp()[self.slot if len(state.log_focal) > 1 else torch.zeros_like(self.slot)][:, None]
        pixel = across * (f / depth)[..., None]
        relative = front / (depth * length)
        several = self.views[s.frame] > 1
        relative = relative * (self.views / (self.views - 1).clamp_min(1)).sqrt()[s.frame]
        lateral = measure_scale(pixel.norm(dim=-1), s.weight, self.used, RAYLEIGH_MEDIAN).at_least(2e-3)
        along = constant_scale(0.02)
        if bool((several & self.used).any()):
            along = measure_scale(relative.abs(), s.weight, self.used & several, NORMAL_MEDIAN).at_least(1e-5)
        both = torch.cat([pixel / lateral.at(s.weight)[..., None], (relative / along.at(s.weight))[..., None]], -1)
        parts = [inflation(both[..., i : i + 1], self.used if i < 2 else self.used & several, self.block, _BLOCKS[0] * _BLOCKS[1]) for i in range(3)]  # fmt: skip
        sigma, share = self._measure_disparity(state, geometry.depth)
        return Noise(
            lateral=lateral, along=along, disparity=sigma, point_weight=3 / sum(parts), disparity_weight=share,
        )  # fmt: skip

    def expected_disparity(self, state: State, depth: Float[Tensor, "T n"]) -> Float[Tensor, "V n"]:
        """Alpha / D + beta of every view's window."""
        assert state.disparity is not None
        fit = state.disparity[self.samples.window]
        return fit[:, :1] / depth[self.samples.frame] + fit[:, 1:]

    def _measure_disparity(self, state: State, depth: Tensor) -> tuple[tuple[ScaleTable, ...] | None, float]:
        s = self.samples
        if s.disparity is None or state.disparity is None:
            return None, 1.0
        model = self.expected_disparity(state, depth)
        error = s.disparity - model
        used = self.used & (s.disparity != 0)
        tables, unit = [], torch.zeros_like(error)
        for k in range(s.num_windows):
            mine = s.window == k
            tables.append(measure_scale(error[mine].abs(), model[mine], used[mine], NORMAL_MEDIAN))
            unit[mine] = error[mine] / tables[-1].at(model[mine])
        return tuple(tables), 1 / inflation(unit[..., None], used, self.block, _BLOCKS[0] * _BLOCKS[1])

    def terms(self, state: State, noise: Noise, focal: list[Term]) -> list[Term]:
        """The energy of one round, without smoothness."""
        s, geometry = self.samples, self.energy([]).geometry(state)
        depth = geometry.depth[s.frame]
        length = geometry.ray.norm(dim=-1)[s.frame]
        f = state.log_focal.exp()[self.slot if len(state.log_focal) > 1 else torch.zeros_like(self.slot)][:, None]
        used = self.used.double()
        out: list[Term] = [
            PointMapTerm(
                weight=used * noise.point_weight, kernel=CauchyKernel(), lateral=f / (depth * noise.lateral.at(s.weight)),
                along=1 / (depth * length * noise.along.at(s.weight)), unit=state.windows.scale[s.window],
                axis=torch.nn.functional.normalize(geometry.ray, dim=-1),
            )
        ]  # fmt: skip
        if noise.disparity is not None and s.disparity is not None:
            mask = used * (s.disparity != 0) * noise.disparity_weight
            model, sigma = self.expected_disparity(state, geometry.depth), torch.ones_like(used)
            for k, table in enumerate(noise.disparity):
                sigma[s.window == k] = table.at(model[s.window == k])
            out.append(DisparityTerm(weight=mask, kernel=CauchyKernel(), sigma=sigma))
        if self.rays is not None and state.trajectory is not None:
            out.append(self._ray_term(state, self.rays))
        return out + focal

    def _ray_term(self, state: State, rays: RayViews) -> RayTerm:
        slot = rays.frame if len(state.centre) > 1 else torch.zeros_like(rays.frame)
        one = torch.ones(len(slot), dtype=torch.float64)
        term = RayTerm(
            pose=rays.pose,
            window=rays.window,
            slot=slot,
            weight=one,
            turn_unit=one,
            move_unit=one,
            kernel=CauchyKernel(),
        )
        turn, move, _ = term._residual(state)
        sigma = max(normal_scale(turn.norm(dim=-1), 3), 1e-5)
        unit = torch.ones_like(one)
        for k in rays.window.unique().tolist():
            mine = rays.window == k
            unit[mine] = 1 / max(normal_scale(move[mine].norm(dim=-1), 3), 1e-6 * float(state.log_depth.exp().median()))
        return replace(term, turn_unit=one / sigma, move_unit=unit)


def _fixed(columns: Columns, start: Start, fixed_pose: Tensor, fixed_focal: bool) -> Bool[Tensor, " D"]:
    """Known poses, a known focal, and the gauge: the first camera and one window's scale unless two poses are known."""
    fixed = torch.zeros(columns.size, dtype=torch.bool)
    fixed[columns.camera[fixed_pose].flatten()] = True
    if fixed_focal:
        fixed[columns.focal] = True
    if not bool(fixed_pose.any()):
        fixed[columns.camera[0]] = True
    centres = start.rig.centre[fixed_pose]
    if len(centres) < 2 or float((centres - centres.mean(0)).norm(dim=-1).max()) < 1e-9:
        keep = torch.nonzero(start.kept).flatten()
        fixed[columns.window[int(keep[len(keep) // 2]) if len(keep) else 0, 6]] = True
    return fixed


def _split(residual: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit ray, its length, the residual across it in a frame (x, y), and along it."""
    length = ray.norm(dim=-1)
    axis = ray / length[..., None]
    front = dot(residual, axis)
    side = residual - front[..., None] * axis
    return axis, length, side[..., :2], front


def refine_all(problems: list[Refinement], start: Start, focal_terms: list[Term], rounds: int = 2) -> Refined:
    """Alternate between measuring noise and lowering the energy; on more samples where that can help.

    Args:
        problems: the same problem on few samples and on more. More samples help only as far as their errors are
            independent, which the first ones tell.
        start: windows and cameras to begin with.
        focal_terms: beliefs about the focal.
        rounds: measurements of the noise on the few samples.
    """
    problem = problems[0]
    state = State(
        rotation=start.rig.rotation, centre=start.rig.centre, log_focal=start.rig.log_focal, windows=start.windows,
        log_depth=torch.zeros_like(problem.samples.uv[..., 0]),
    )  # fmt: skip
    state = with_depth(state, sample_depths(state, problem.samples, problem.xy))
    state = _start_disparity(state, problem.samples)
    if problem.rays is not None:
        state = _start_trajectory(state, problem.rays)
    smooth = first_guess(state) if len(state.centre) > 3 else None
    for number in range(rounds):
        last = number == rounds - 1
        state, noise, smooth, energy = _round(problem, state, smooth, focal_terms, 20 if last else 3)
    more = problems[-1]
    if more.samples.uv.shape[1] > problem.samples.uv.shape[1] and noise.point_weight > _INDEPENDENT:
        problem = more
        state = with_depth(state, sample_depths(state, problem.samples, problem.xy))
        state, noise, smooth, energy = _round(problem, state, smooth, focal_terms, 20)
    notes: dict[str, Any] = {
        "objective": {name: round(value, 6) for name, value in energy.costs(state).items()},
        "noise": {
            "lateral_px": float(noise.lateral.values.median()), "range_relative": float(noise.along.values.median()),
            "independent_share": noise.point_weight,
            "turn_deg": None if smooth is None else float(torch.rad2deg(torch.tensor(smooth.turn))),
            "move": None if smooth is None else smooth.move,
        },
    }  # fmt: skip
    return Refined(state=state, noise=noise, notes={**notes, **doubts(problem, energy, state, noise)})


def _round(
    problem: Refinement, state: State, smooth: AccelerationTerm | None, focal_terms: list[Term], iterations: int
) -> tuple[State, Noise, AccelerationTerm | None, Energy]:
    """Measure the noise and the smoothness, freeze them, lower the energy."""
    noise = problem.measure(state)
    energy = problem.energy(problem.terms(state, noise, focal_terms))
    normal = energy.linearize(state)
    if smooth is not None:
        smooth = by_evidence(energy, normal, state, smooth)
        energy, normal = energy.extended(normal, smooth, state)
    schedule = LMConfig(iterations=iterations, tolerance=2e-4 if iterations > 5 else 1e-3)
    return minimise(energy, state, schedule, first=normal).state, noise, smooth, energy


def doubts(problem: Refinement, energy: Energy, state: State, noise: Noise) -> dict[str, Any]:
    """Frames whose camera few pixels agree with; whether a given focal contradicts the points."""
    s, geometry = problem.samples, energy.geometry(state)
    _, _, across, _ = _split(geometry.residual, geometry.ray[s.frame])
    f = state.log_focal.exp()[problem.slot if len(state.log_focal) > 1 else torch.zeros_like(problem.slot)][:, None]
    error = across.norm(dim=-1) * f / geometry.depth[s.frame]
    agree = (
        error < torch.maximum(4 * noise.lateral.at(s.weight), torch.full_like(error, 0.01 * max(problem.size)))
    ) & problem.used
    T = s.num_frames
    count, good = (
        torch.zeros(T, dtype=torch.float64).index_add_(0, s.frame, v.double().sum(1)) for v in (problem.used, agree)
    )
    share = good / count.clamp_min(1)
    out: dict[str, Any] = {
        "inlier_ratio": round(float(good.sum() / count.sum().clamp_min(1)), 4),
        "frames_unreliable": torch.nonzero((share < 0.3) & (count > 0)).flatten().tolist(),
    }
    if problem.fixed_focal and len(state.log_focal) == 1:
        free = copy.copy(energy)
        fixed = problem.fixed.clone()
        fixed[problem.columns.focal] = False
        free.layout = replace(energy.layout, fixed=fixed)
        better = minimise(free, state, LMConfig(iterations=15, tolerance=1e-4))
        out["focal_px_of_points"] = float(better.state.log_focal.exp()[0])
        gain = energy.cost(state) - better.cost
        change = abs(float(better.state.log_focal[0] - state.log_focal[0]))
        out["focal_contradicted"] = change > 0.03 and gain > 20
    return out


def _start_disparity(state: State, samples: Samples) -> State:
    """(alpha, beta) of each window by least absolute deviations of d against 1/D."""
    if samples.disparity is None:
        return state
    fit = torch.zeros(samples.num_windows, 2, dtype=torch.float64)
    inverse = torch.exp(-state.log_depth)
    for k in range(samples.num_windows):
        views = samples.window == k
        d, z = samples.disparity[views].flatten(), inverse[samples.frame[views]].flatten()
        used = (samples.weight[views].flatten() > 0) & (d != 0)
        if int(used.sum()) > 8:
            step = max(1, int(used.sum()) // 500)
            alpha, beta = scale_shift_l1(z[used][::step], d[used][::step])
            fit[k, 0], fit[k, 1] = alpha, beta
    return replace(state, disparity=fit)


def _start_trajectory(state: State, rays: RayViews) -> State:
    """A_k, kappa_k: chordal mean of the rotations, then scale and translation of the centres."""
    G = len(state.windows.scale)
    a = Similarity(
        scale=state.windows.scale.clone(), rotation=state.windows.rotation.clone(),
        translation=torch.zeros(G, 3, dtype=torch.float64),
    )  # fmt: skip
    C = len(state.centre)
    for k in rays.window.unique().tolist():
        mine = rays.window == k
        slot = rays.frame[mine] if C > 1 else torch.zeros_like(rays.frame[mine])
        u, _, vt = torch.linalg.svd((state.rotation[slot] @ rays.pose[mine, :3, :3].mT).sum(0))
        sign = torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vt).sign())]).double()
        a.rotation[k] = (u * sign) @ vt
        turned = rays.pose[mine, :3, 3] @ a.rotation[k].T
        target = state.centre[slot]
        fit = umeyama_batch(turned, target, torch.ones(len(target), dtype=torch.float64))
        path = (target - target.mean(0)).norm(dim=-1).mean()
        if len(target) > 3 and float(path) > 1e-3 * float(state.log_depth.exp().median()):
            a.scale[k] = fit.scale
        a.translation[k] = (target - a.scale[k] * turned).median(0).values
    return replace(state, trajectory=a)
