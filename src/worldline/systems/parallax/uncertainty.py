"""How surely the flow determines the cameras, in terms of what they are for: depth (spec 3C).

Flow that is explained perfectly can leave cameras loose: focal length, rotation and translation trade places at little
cost, and inverse depth r bends with them, which no pixel's own noise shows. The curvature of the cost says how much.
With S the Schur complement of the adjustment (points eliminated) and v the variance of a match, cameras that the flow
likes as well as those found are x ~ N(0, v S^-1), and a point answers with

    dr = -E^T x / h            (E, h: the point's part of the normal equations)

A dozen such x give the standard deviation of log r about its frame's scale, which no video shows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from worldline.align.flow_adjust import R_MIN, FlowLinear, FlowProblem, FlowState, Matches, reprojection_errors
from worldline.align.schur import reduced_blocks
from worldline.systems.parallax.observability import CORRELATED, CameraSolution

WINDOW = 16  # frames whose cameras are loose together: beyond, errors are drift, which scales and does not bend
WINDOWS = 8  # looked at per clip
SAMPLES = 12  # sets of cameras
LARGE = 10.0  # as good as infinite
LEAST = 30  # points without which nothing is known of a window


def camera_deviation(
    matches: Matches, solution: CameraSolution, known_focal: bool, sigma_px: float, focal_spread: float
) -> float:
    """How loosely the flow holds the cameras: standard deviation of log focal and of log depth, root of both squared.

    0 for poses that were given and cameras without translation; large where the flow says nothing.

    Args:
        matches: what the cameras were found from.
        solution: the cameras.
        known_focal: the intrinsics were given.
        sigma_px: residual at which a match counts half.
        focal_spread: standard deviation of the log of usual focal lengths.
    """
    if solution.posed or solution.kind != "full":
        return 0.0
    focal = 0.0 if known_focal else solution.report.get("focal_deviation")
    problem = FlowProblem(
        matches=matches, sigma_px=sigma_px, free_focal=not known_focal, fixed=np.zeros(len(matches), bool)
    )
    bent = depth_deviation(problem, solution.state, focal_spread)
    return float(min(np.hypot(bent, LARGE if focal is None else focal), LARGE))


def depth_deviation(problem: FlowProblem, state: FlowState, focal_spread: float) -> float:
    """Usual standard deviation of log inverse depth that the doubt about the cameras causes; inf if nothing is known.

    Args:
        problem: what was solved, with the focal length free unless it was given; its priors do not count.
        state: its solution.
        focal_spread: standard deviation of the log of usual focal lengths.
    """
    count = len(problem.matches)
    size = min(count, WINDOW)
    starts = np.linspace(0, count - size, min(WINDOWS, -(-count // size))).astype(int)
    return float(np.median([_window(problem, state, np.arange(s, s + size), focal_spread) for s in np.unique(starts)]))


def _window(problem: FlowProblem, state: FlowState, frames: np.ndarray, focal_spread: float) -> float:
    """The same of some frames."""
    matches, r = problem.matches.restrict(frames), state.r[frames]
    part = FlowState(w2c=state.w2c[frames], intrinsics=state.intrinsics[frames], r=r, log_scale=state.log_scale[frames])
    fixed = np.arange(len(frames)) == 0
    free = replace(problem, matches=matches, fixed=fixed, prior=None, focal_prior=None, banded=False)
    errors = reprojection_errors(matches, part)
    used = (matches.weight > 0.2) & np.isfinite(errors) & (errors < 3 * problem.sigma_px)
    known = (np.where(used, matches.weight, 0).sum(1) > 1) & (r > 2 * R_MIN)
    if known.sum() < LEAST:
        return float("inf")
    linear = free.linearize(part)
    steps = _loose(linear, CORRELATED * float(np.mean(errors[used] ** 2)) / 2, focal_spread)
    still = linear.back_substitute(torch.zeros_like(steps[0]), 0.0)[0].numpy()
    bent = np.stack([(linear.back_substitute(step, 0.0)[0].numpy() - still) / r for step in steps])
    for t, mask in enumerate(known):
        bent[:, t] -= np.median(bent[:, t, mask], axis=1, keepdims=True) if mask.any() else 0.0
    return float(1.4826 * np.median(np.abs(bent[:, known])))


def _loose(linear: FlowLinear, noise: float, focal_spread: float) -> torch.Tensor:
    """Camera steps [SAMPLES, D] drawn from N(0, noise S^-1), the focal length held by its usual spread."""
    layout = linear.problem.layout
    S = np.zeros((layout.size, layout.size))
    for part in linear.parts():
        for columns, H, _ in reduced_blocks(part, 1e-9):
            for index, block in zip(columns.numpy(), H.numpy(), strict=True):
                there = index >= 0
                S[np.ix_(index[there], index[there])] += block[np.ix_(there, there)]
    S /= noise
    S[-1, -1] += focal_spread**-2
    assert layout.fixed is not None
    free = np.flatnonzero(~layout.fixed.numpy())
    values, vectors = np.linalg.eigh(S[np.ix_(free, free)])
    spread = vectors / np.sqrt(np.maximum(values, 1e-9 * values[-1]))
    steps = np.zeros((SAMPLES, layout.size))
    steps[:, free] = np.random.default_rng(0).standard_normal((SAMPLES, len(free))) @ spread.T
    return torch.from_numpy(steps)
