"""The default joint refinement: unbiased terms in units of their own noise, all cameras and windows at once.

In rounds: (1) measure the noise of points, disparity and rays, and how smoothly the camera really moves; (2) with these
frozen, lower the energy by Schur-eliminated Levenberg-Marquardt. Normalisations are never part of what is minimised, so
no error becomes cheaper by being moved away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from worldline.align.energy import Energy, sample_depths, with_depth
from worldline.align.initialize import Start
from worldline.align.problem import Noise, Refinement, split_along
from worldline.align.rays import RayViews
from worldline.align.sampling import Samples
from worldline.align.schur import LMConfig, minimise
from worldline.align.smoothness import by_evidence, first_guess
from worldline.align.state import State
from worldline.align.synchronize import umeyama_batch
from worldline.align.terms import Term
from worldline.geometry.fit import scale_shift_l1
from worldline.geometry.pose import Similarity

_LOOP_ROUNDS = 4  # in which loops that the windows miss get heavier
_INDEPENDENT = 0.8  # share of samples with errors of their own above which more samples are worth their time


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


def refine_all(
    problem: Refinement, finer: Callable[[], Refinement] | None, start: Start, focal_terms: list[Term], rounds: int = 2
) -> Refined:
    """Alternate between measuring noise and lowering the energy; on more samples where that can help.

    Args:
        problem: on few samples.
        finer: makes the same problem on more samples, or None. They help only as far as their errors are independent,
            which the first ones tell.
        start: windows and cameras to begin with.
        focal_terms: beliefs about the focal.
        rounds: measurements of the noise on the few samples.
    """
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
    if finer is not None and noise.point_weight > _INDEPENDENT:
        problem = finer()
        state = with_depth(state, sample_depths(state, problem.samples, problem.xy))
        state, noise, smooth, energy = _round(problem, state, smooth, focal_terms, 20)
    for _ in range(_LOOP_ROUNDS):
        if problem.loops is None or problem.loops.weighted(state.windows) is problem.loops:
            break
        problem.loops, problem.closing = problem.loops.weighted(state.windows), True
        state, noise, smooth, energy = _round(problem, state, smooth, focal_terms, 10)
    notes: dict[str, Any] = {
        "objective": {name: round(value, 6) for name, value in energy.costs(state).items()},
        **({} if problem.loops is None else {"loops_missed": problem.closing}),
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
    _, _, across, _ = split_along(geometry.residual, geometry.ray[s.frame])
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
