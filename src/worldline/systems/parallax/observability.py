"""What the flow could and could not tell: translation, focal length; the report and its warnings (spec 1.3, 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from worldline.align.flow_adjust import FlowProblem, FlowState, Matches, blocks, focal_variance, reprojection_errors
from worldline.systems.parallax.statistic import CameraKind, Parallax

MOST_HOSTS = 256
"""Frames of a long clip, evenly spread, whose residuals are compared."""
FocalKind = Literal["given", "estimated", "not_observable"]
CORRELATED = 50.0
"""Neighbouring matches share their errors: so many count as one (calibrated on clips with truth)."""
NOISE_PX = 0.25
"""Usual error of a match."""
DOUBTFUL = 0.2
"""Log factor between rival scales from which on the scale is in doubt: about a quarter."""


@dataclass(frozen=True, kw_only=True)
class CameraSolution:
    """Cameras and what is known about them.

    Attributes:
        state: poses (world-to-camera), intrinsics, inverse depth of the grid points.
        kind: "full", "rotation_only" (translations are zero) or "static".
        focal: where the focal length comes from.
        registered: [T] bool, False where the pose is interpolated.
        posed: the poses were given, world and scale are theirs; else world = first camera, median inverse depth 1.
        noise: the given poses move, but what the flow shows of it is noise.
        report: numbers for the provenance.
        warnings: sentences for the user.
    """

    state: FlowState
    kind: CameraKind
    focal: FocalKind
    registered: np.ndarray
    posed: bool = False
    noise: bool = False
    report: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def unexplained(matches: Matches, state: FlowState, offsets: tuple[int, ...], standing: Parallax) -> float:
    """Median flow residual of the reconstruction over what a standing camera leaves, at the gap where it is least.

    `standing` are the rotations, with zoom unless the focal length is known, that explain the flow best.

    Parallax is explained by translation and depth (about 0.1); what is noise remains (above 0.5) although every point
    has a depth to fit it with. 1 when there is nothing to compare.
    """
    hosts = np.unique(np.linspace(0, len(matches) - 1, MOST_HOSTS).astype(int))
    errors = reprojection_errors(matches, state, hosts)
    errors[matches.weight[hosts] < 0.2] = np.nan
    rotating = standing.parallax_px
    shares = [1.0]
    for gap in {abs(offset) for offset in offsets}:
        slots = [k for k, offset in enumerate(offsets) if abs(offset) == gap]
        values, rotation = errors[:, slots], rotating[:, slots]
        if np.isfinite(values).any() and np.isfinite(rotation).any():
            shares.append(float(np.nanmedian(values) / max(float(np.nanmedian(rotation)), 1e-6)))
    return min(shares)


def focal_deviation(problem: FlowProblem, state: FlowState) -> float:
    """Standard deviation of log focal from the curvature of the cost, without any prior on it; inf if there is none."""
    problem = replace(problem, focal_prior=None, prior=None)
    matches, count, total = problem.matches, 0, 0.0
    for part in blocks(len(matches)):
        errors = reprojection_errors(matches, state, np.arange(part.start, part.stop))
        used = (matches.weight[part] > 0.2) & np.isfinite(errors) & (errors < 3 * problem.sigma_px)
        count, total = count + int(used.sum()), total + float((errors[used] ** 2).sum(dtype=np.float64))
    if count < 50:
        return float("inf")
    noise = total / count / 2
    return float(np.sqrt(focal_variance(problem, state) * noise * CORRELATED))


def doubtful(doubt: np.ndarray) -> np.ndarray:
    """Indices at which `grow.Grown.doubt` is more than what cannot be helped."""
    return np.flatnonzero(doubt > DOUBTFUL)


def focal_kind(known: bool, deviation: float, limit: float) -> FocalKind:
    """How the focal length came about; "not_observable" where its deviation in log is above `limit`."""
    if known:
        return "given"
    return "estimated" if deviation < limit else "not_observable"


def plausible_focal(found: float, deviation: float, usual: float, spread: float) -> float:
    """The focal length to go on with when the motion hardly shows it.

    log f has two witnesses: the adjustment, log `found` with standard deviation s = `deviation`, and what cameras
    usually have, log `usual` with standard deviation p = `spread`. Their weighted mean has the weight

        a = p^2 / (p^2 + s^2) / (1 + z^2)^2,      z^2 = (log found - log usual)^2 / (4 (p^2 + s^2))

    on the first: a finding that contradicts what cameras have is a sign of a moving thing taken for the world.
    """
    if not np.isfinite(deviation):
        return usual
    difference, variance = np.log(found / usual), spread**2 + deviation**2
    share = spread**2 / variance / (1 + difference**2 / (4 * variance)) ** 2
    return float(usual * np.exp(share * difference))


def describe(
    solution: CameraSolution,
    parallax: Parallax,
    offsets: tuple[int, ...],
    low_px: float,
    numbers: Mapping[str, float | None],
    doubt: np.ndarray | None = None,
) -> CameraSolution:
    """The solution with its report and warnings filled in; `doubt` is `grow.Grown.doubt`."""
    by_gap = {gap: value for gap, value in parallax.by_gap(offsets).items() if np.isfinite(value)}
    fx, fy = solution.state.intrinsics[0, :2]
    report: dict[str, Any] = {
        "parallax_px": {str(gap): round(value, 3) for gap, value in by_gap.items()},
        "camera": solution.kind,
        "focal": solution.focal,
        "focal_px": None if solution.focal == "not_observable" else round(float(np.sqrt(fx * fy)), 3),
        "registered": int(solution.registered.sum()),
    }
    zoom = float(np.ptp(np.log(solution.state.intrinsics[:, 0])))
    if solution.focal != "given" and zoom > 1e-6:
        report["zoom"] = round(float(np.exp(zoom)), 3)
    for name, value in numbers.items():
        report[name] = round(value, 4) if value is not None and np.isfinite(value) else None
    warnings = list(solution.warnings)
    if len(solution.registered) == 1:
        warnings.append("There is only one frame: motion and parallax cannot be known; depth is the prior's, if any.")
    elif solution.kind != "full":
        turns = "only rotates and zooms" if "zoom" in report else "only rotates"
        what = "does not move" if solution.kind == "static" else f"{turns}, as far as the image motion shows"
        warnings.append(
            f"The camera {what}: depth cannot be seen from parallax and is unknown unless a prior gives it."
        )
    elif solution.noise:
        warnings.append(
            "The given poses explain hardly more of the image motion than noise would (they move too little, or are "
            "wrong): depth from it is mostly noise."
        )
    elif max(by_gap.values(), default=0.0) < low_px:
        warnings.append("There is hardly any parallax: depth and translation are of low confidence.")
    if solution.focal == "not_observable":
        warnings.append("The focal length cannot be seen in this motion; the one used is a guess: give it if you can.")
    changes = {} if doubt is None else {int(t) + 1: round(float(np.exp(doubt[t])), 2) for t in doubtful(doubt)}
    if changes:
        report["scale_doubt"] = {str(frame): factor for frame, factor in changes.items()}
        worst = max(changes, key=lambda frame: changes[frame])
        warnings.append(
            f"Scale is in doubt at {len(changes)} of {len(solution.registered)} frames, most at frame {worst}: "
            f"what comes before and after may differ by a factor of {changes[worst]:.2g} in size."
        )
    missing = int((~solution.registered).sum())
    if missing:
        warnings.append(f"{missing} of {len(solution.registered)} cameras could not be found and are interpolated.")
    return replace(solution, report=report, warnings=tuple(warnings))
