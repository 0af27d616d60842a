"""Cameras of a whole clip from its flow matches: what can be known, focal length, several starts, bundle adjustment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from worldline.align.flow_adjust import (
    R_MIN,
    DepthPrior,
    FlowProblem,
    FlowState,
    Matches,
    adjust,
    focal_variance,
    relative_cost,
)
from worldline.scene import Progress, no_progress
from worldline.systems.parallax.epipolar import search_focal, start_pairs
from worldline.systems.parallax.grow import Grown, grow, normalise, retriangulate
from worldline.systems.parallax.statistic import CameraKind, Parallax, classify, measure, rotation_focal

FocalKind = Literal["given", "estimated", "not_observable"]
DENSE_FRAMES = 100  # longer clips use the banded solver


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """How cameras are solved.

    Attributes:
        grid_points: matches per frame and direction.
        sigma_px: reprojection error at which a match counts a quarter.
        starts: parts of the clip in which a reconstruction is started; the best one is kept.
        iterations: bundle adjustment steps per round; there are two rounds.
        floor_px: parallax below this at every gap means there is no translation to see (flow noise is about 0.07).
        low_px: parallax below this at every gap is reported as weak.
        focal_range: smallest and largest focal length searched, in units of the longer side.
        focal_steps: of that search.
        default_focal: where nothing is known, in units of the longer side.
        focal_deviation: standard deviation of log focal above which it is called not observable.
        prior_weight: of a depth prior in bundle adjustment, px^2 per unit of squared log ratio.
    """

    grid_points: int = 320
    sigma_px: float = 0.75
    starts: int = 4
    iterations: int = 12
    floor_px: float = 0.25
    low_px: float = 1.0
    focal_range: tuple[float, float] = (0.45, 2.2)
    focal_steps: int = 15
    default_focal: float = 0.9
    focal_deviation: float = 0.1
    prior_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CameraSolution:
    """Cameras and what is known about them.

    Attributes:
        state: poses (world-to-camera, first frame = identity), intrinsics, inverse depth of the grid points.
        kind: "full", "rotation_only" (translations are zero) or "static".
        focal: where the focal length comes from.
        registered: [T] bool, False where the pose is interpolated.
        report: numbers for the provenance.
        warnings: sentences for the user.
    """

    state: FlowState
    kind: CameraKind
    focal: FocalKind
    registered: np.ndarray
    report: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def solve_cameras(
    matches: Matches,
    offsets: tuple[int, ...],
    intrinsics: np.ndarray,
    *,
    known_focal: bool,
    longer_side: int,
    static: bool = False,
    config: CameraConfig = CameraConfig(),
    prior: DepthPrior | None = None,
    progress: Progress = no_progress,
) -> CameraSolution:
    """Cameras of all frames.

    Args:
        matches: grid matches of the clip.
        offsets: frame offset of each slot.
        intrinsics: [T, 4] float64 fx, fy, cx, cy; a first guess of the focal lengths unless they are known.
        known_focal: keep the intrinsics.
        longer_side: max(H, W) in pixels.
        static: the camera is known not to move.
        config: see there.
        prior: inverse depth of the grid points from elsewhere.
        progress: called per start.
    """
    # 1. How much parallax is there? (for an unknown focal length: under the one that rotations like best)
    if not known_focal:
        intrinsics = intrinsics.copy()
        intrinsics[:, :2] *= config.default_focal * longer_side / intrinsics[:, :1].mean()
        factor, _ = rotation_focal(matches, intrinsics, focal_factors(config))
        rotating = intrinsics * np.array([factor, factor, 1, 1])
    else:
        rotating = intrinsics
    parallax = measure(matches, rotating)
    kind = "static" if static else classify(parallax, offsets, config.floor_px)
    # 2. No translation: rotations only, and the focal length if the rotation shows it.
    if kind != "full":
        return _without_translation(matches, parallax, offsets, rotating, kind, known_focal, config)
    # 3. Focal length: the epipolar search's minimum, and the usual one.
    guesses = [intrinsics]
    if not known_focal:
        factors = focal_factors(config)
        curve = search_focal(matches, parallax, intrinsics, factors)
        guesses.insert(0, intrinsics * np.array([factors[curve.argmin()], factors[curve.argmin()], 1, 1]))
    # 4. Several starts, grown to the whole clip; keep what registers most frames at least cost.
    best = _best_start(matches, parallax, guesses, config, progress)
    if best is None:
        solution = _without_translation(matches, parallax, offsets, rotating, "rotation_only", known_focal, config)
        warning = "No pair of frames agreed on one rigid motion: rotations only."
        return replace(solution, warnings=(*solution.warnings, warning))
    # 5. Bundle adjustment over everything.
    state, cost = refine(matches, best, not known_focal, config, prior)
    return _describe(matches, state, cost, best.registered, parallax, offsets, known_focal, config)


def focal_factors(config: CameraConfig) -> np.ndarray:
    """Focal lengths to try, relative to the default one."""
    low, high = config.focal_range
    return np.geomspace(low, high, config.focal_steps) / config.default_focal


def refine(
    matches: Matches, grown: Grown, free_focal: bool, config: CameraConfig, prior: DepthPrior | None
) -> tuple[FlowState, float]:
    """Two rounds of bundle adjustment and fresh triangulation; the state and its relative cost (spec 1.7)."""
    state = grown.state
    everyone = np.ones(len(matches), bool)
    fixed = np.arange(len(matches)) == 0
    cost = 1.0
    for round_sigma in (2 * config.sigma_px, config.sigma_px):
        state = normalise(retriangulate(matches, state, everyone, everyone, round_sigma), everyone)
        problem = FlowProblem(
            matches=matches,
            sigma_px=round_sigma,
            free_focal=free_focal,
            fixed=fixed,
            prior=prior,
            banded=len(matches) > DENSE_FRAMES,
        )
        state, cost = adjust(problem, state, config.iterations)
    return normalise(to_first_camera(state), everyone), cost


def to_first_camera(state: FlowState) -> FlowState:
    """The same reconstruction in the first camera's frame."""
    return replace(state, w2c=state.w2c @ np.linalg.inv(state.w2c[0]))


def _best_start(
    matches: Matches,
    parallax: Parallax,
    guesses: list[np.ndarray],
    config: CameraConfig,
    progress: Progress,
) -> Grown | None:
    """Grow from one pair per part of the clip with the first intrinsics, and from the best pair with the others."""
    pairs = start_pairs(matches, parallax, guesses[0], config.starts)
    best, best_rank, best_pair = None, (0, 0.0), None
    jobs = [(pair, guesses[0]) for pair in pairs]
    done = 0
    while jobs:
        pair, intrinsics = jobs.pop(0)
        if (grown := grow(matches, intrinsics, pair, 2 * config.sigma_px)) is not None:
            free = len(guesses) > 1
            short = replace(config, iterations=4)
            state, cost = refine(matches, grown, free, short, None)
            rank = (int(grown.registered.sum()), -cost)
            if best is None or rank > best_rank:
                best, best_rank, best_pair = Grown(state=state, registered=grown.registered), rank, pair
        done += 1
        progress("cameras", done, len(pairs) + len(guesses) - 1)
        if done == len(pairs) and best_pair is not None:
            jobs += [(best_pair, other) for other in guesses[1:]]
    return best


def _without_translation(
    matches: Matches,
    parallax: Parallax,
    offsets: tuple[int, ...],
    intrinsics: np.ndarray,
    kind: CameraKind,
    known_focal: bool,
    config: CameraConfig,
) -> CameraSolution:
    """Rotations, chained then adjusted with all points at infinity; identity for a static camera."""
    frames, points = matches.pixels.shape[:2]
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    state = FlowState(w2c=w2c, intrinsics=intrinsics, r=np.full((frames, points), R_MIN), log_scale=np.zeros(frames))
    deviation = float("inf")
    if kind == "rotation_only" and frames > 1:
        for t in range(1, frames):
            w2c[t, :3, :3] = parallax.rotation[t - 1, offsets.index(1)] @ w2c[t - 1, :3, :3]
        problem = FlowProblem(
            matches=matches,
            sigma_px=config.sigma_px,
            free_focal=not known_focal,
            fixed=np.arange(frames) == 0,
            fix_translation=True,
            banded=frames > DENSE_FRAMES,
        )
        state, _ = adjust(problem, state, config.iterations)
        deviation = focal_deviation(problem, state)
    focal: FocalKind = (
        "given" if known_focal else "estimated" if deviation < config.focal_deviation else "not_observable"
    )
    if focal == "not_observable":
        mean = state.intrinsics[:, :1].mean()
        default = config.default_focal * _longer_side(matches)
        state = replace(state, intrinsics=state.intrinsics * np.array([default / mean, default / mean, 1, 1]))
    report = _report(parallax, offsets, kind, focal, state, deviation, np.ones(frames, bool), None)
    what = "does not move" if kind == "static" else "only rotates"
    warning = f"The camera {what}: depth cannot be seen from parallax and is unknown unless a prior gives it."
    warnings = (warning, *_focal_warning(focal))
    return CameraSolution(
        state=state, kind=kind, focal=focal, registered=np.ones(frames, bool), report=report, warnings=warnings
    )


def _focal_kind(known: bool, deviation: float, config: CameraConfig) -> FocalKind:
    if known:
        return "given"
    return "estimated" if deviation < config.focal_deviation else "not_observable"


def _longer_side(matches: Matches) -> float:
    return float(matches.pixels.max(axis=(0, 1)).max() + 1)


def focal_deviation(problem: FlowProblem, state: FlowState) -> float:
    """Standard deviation of log focal from the curvature of the cost, residuals taken as correlated in groups."""
    correlated = 25.0  # neighbouring matches and overlapping gaps share their errors; calibrated on clips with truth
    share = relative_cost(problem, problem.cost(state))
    inlier_variance = problem.sigma_px**2 * share / max(1e-3, 1 - share) / 2
    return float(np.sqrt(focal_variance(problem, state) * inlier_variance * correlated))


def _describe(
    matches: Matches,
    state: FlowState,
    cost: float,
    registered: np.ndarray,
    parallax: Parallax,
    offsets: tuple[int, ...],
    known_focal: bool,
    config: CameraConfig,
) -> CameraSolution:
    fixed = np.arange(len(matches)) == 0
    problem = FlowProblem(
        matches=matches,
        sigma_px=config.sigma_px,
        free_focal=True,
        fixed=fixed,
        banded=len(matches) > DENSE_FRAMES,
    )
    deviation = focal_deviation(problem, state)
    focal: FocalKind = (
        "given" if known_focal else "estimated" if deviation < config.focal_deviation else "not_observable"
    )
    report = _report(parallax, offsets, "full", focal, state, deviation, registered, cost)
    warnings = list(_focal_warning(focal))
    if max(parallax.by_gap(offsets).values()) < config.low_px:
        warnings.append("There is hardly any parallax: depth and translation are of low confidence.")
    if not registered.all():
        warnings.append(
            f"{int((~registered).sum())} of {len(matches)} cameras could not be found and are interpolated."
        )
    return CameraSolution(
        state=state, kind="full", focal=focal, registered=registered, report=report, warnings=tuple(warnings)
    )


def _focal_warning(focal: FocalKind) -> tuple[str, ...]:
    if focal != "not_observable":
        return ()
    return ("The focal length cannot be seen in this motion; the one used is a guess: give intrinsics if you can.",)


def _report(
    parallax: Parallax,
    offsets: tuple[int, ...],
    kind: CameraKind,
    focal: FocalKind,
    state: FlowState,
    deviation: float,
    registered: np.ndarray,
    cost: float | None,
) -> dict[str, Any]:
    by_gap = {str(gap): round(value, 3) for gap, value in parallax.by_gap(offsets).items() if np.isfinite(value)}
    report: dict[str, Any] = {
        "parallax_px": by_gap,
        "camera": kind,
        "focal": focal,
        "focal_px": round(float(np.sqrt(state.intrinsics[0, 0] * state.intrinsics[0, 1])), 3),
        "focal_deviation": round(deviation, 4) if np.isfinite(deviation) else None,
        "registered": int(registered.sum()),
    }
    if focal == "not_observable":
        report["focal_px"] = None
    if cost is not None:
        report["cost"] = round(cost, 4)
    return report
