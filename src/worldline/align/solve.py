"""Many windows, one world: observations in, cameras and one consistent scene out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from worldline.align.alignment import Alignment
from worldline.align.camera_terms import FocalTerm
from worldline.align.config import AlignConfig, KnownDistance, Priors
from worldline.align.flow_data import FlowMatches, flow_targets, match_scene_flow
from worldline.align.fuse import Fusion, RobustFusion
from worldline.align.initialize import Start, guess_focal, initialize
from worldline.align.loop_matches import Loops
from worldline.align.loops import close_loops
from worldline.align.metric import metric_factor
from worldline.align.observation import Observation
from worldline.align.pixels import full_rays, measured_pixels
from worldline.align.published import PublishedFusion, PublishedWeights, minimise_published
from worldline.align.rays import RayViews, read_rays
from worldline.align.refine import Refinement, refine_all
from worldline.align.report import dynamic_threshold, reference_weight, summarise
from worldline.align.resume import Shelf, Stages
from worldline.align.sampling import Samples, gather, thin
from worldline.align.state import State
from worldline.align.terms import Term
from worldline.align.world import final_world, known_world
from worldline.scene import Progress, no_progress

__all__ = ["AlignConfig", "Alignment", "KnownDistance", "Observation", "Priors", "solve"]

_NO_PRIORS, _DEFAULTS = Priors(), AlignConfig()


def solve(
    observations: Sequence[Observation],
    num_frames: int,
    size: tuple[int, int],
    priors: Priors = _NO_PRIORS,
    config: AlignConfig = _DEFAULTS,
    progress: Progress = no_progress,
    optical_flow: Float[Tensor, "S H W 2"] | None = None,
    shelf: Shelf | None = None,
) -> Alignment:
    """Join windows into one world and solve a camera for every frame.

    Args:
        observations: one per window, each in its own frame and scale; may be lazy (read a few times, in order).
        num_frames, size: T of the video, and (H, W) of the observations.
        priors: what is known beforehand.
        config: settings.
        progress: told about each phase.
        optical_flow: the same as `priors.optical_flow`.
        shelf: keeps finished stages, so that an interrupted alignment of the same windows goes on (default objective).

    Returns:
        Cameras with world = first camera (or of the known poses), fields on demand. What could not be determined is
        said in `report["undetermined"]`; nothing is ever NaN.

    Raises:
        ValueError: observations or priors that do not fit the video.
    """
    priors = priors if optical_flow is None else replace(priors, optical_flow=optical_flow)
    priors.check(num_frames, size)
    clock = _Clock(progress)
    # 1. a stratified subset of pixels of every window
    most = max(config.most_samples // max(num_frames, 1), 64)
    fine = gather(observations, num_frames, size, priors, min(4 * config.samples_per_frame, most), config.seed)
    stages = Stages(shelf if config.objective == "default" else None, fine, priors, config)
    clock.done("read windows", 1)
    with _one_thread():
        # 2. windows joined, first cameras
        samples = thin(fine, config.samples_per_frame)
        xy, principal = measured_pixels(samples.uv, size, priors)
        start, loops = stages.once("joined", lambda: _join(samples, xy, size, priors, config))
        clock.done("join windows", 2)
        # 3. everything together
        levels = [replace(s, weight=s.weight * start.kept[s.window][:, None]) for s in (samples, fine)]

        others = (principal, size, priors, config, loops)
        state, fusion, notes = stages.once("refined", lambda: _together(observations, levels, start, *others))
        clock.done("refine", 3)
    # 4. the world of the first camera or of known poses, the metric scale
    windows, cameras = final_world(state, principal, size, num_frames, priors)
    alignment = Alignment(
        cameras=cameras, windows=windows, kept=start.kept, report={**start.notes, **notes}, observations=observations,
        rays=full_rays(cameras, size, priors), config=config, fusion=fusion,
        reference_weight=reference_weight(levels[0]), window_frames=_window_frames(fine), state=state,
        dynamic_threshold=dynamic_threshold(levels[0], windows, cameras, config), optical_flow=priors.optical_flow,
    )  # fmt: skip
    alignment = metric_factor(alignment, priors)
    clock.done("scene", 4)
    about = summarise(alignment.report, levels[0], alignment.windows, cameras, start)
    alignment.report.update(about, seconds=clock.seconds, cpu_seconds=clock.cpu_seconds)
    return alignment


def _together(
    observations: Sequence[Observation], levels: list[Samples], start: Start, principal: Tensor,
    size: tuple[int, int], priors: Priors, config: AlignConfig, loops: Loops | None,
) -> tuple[State, Fusion, dict[str, Any]]:  # fmt: skip
    """Everything that ties windows and cameras, read and minimised together."""
    focal, published = float(start.rig.log_focal.exp().median()), config.objective == "published"
    rays = read_rays(observations, principal, focal, published) if levels[0].has_rays else None
    matches = match_scene_flow(observations, levels[0], start, size, principal) if not published else None
    return _refine(levels, start, rays, size, priors, config, matches, loops)


def _window_frames(samples: Samples) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(samples.frame[samples.window == k].tolist()) for k in range(samples.num_windows))


def _join(
    samples: Samples, xy: Tensor, size: tuple[int, int], priors: Priors, config: AlignConfig
) -> tuple[Start, Loops | None]:
    """Windows in one world with first cameras, far windows tied together, in the world of known poses."""
    start, loops = initialize(samples, xy, size, priors, config), None
    if config.loops and config.objective == "default":
        start, loops, found = close_loops(samples, start, size, priors)
        start = replace(start, notes={**start.notes, **found})
    return known_world(start, priors), loops


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small matrices are solved faster by one thread than by several that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _refine(
    levels: list[Samples], start: Start, rays: RayViews | None, size: tuple[int, int], priors: Priors,
    config: AlignConfig, matches: FlowMatches | None, loops: Loops | None,
) -> tuple[State, Fusion, dict[str, Any]]:  # fmt: skip
    """All variables by the chosen objective, on few samples, then on more; and how depth follows from them."""
    if config.objective == "published":
        return _refine_published(levels[0], start, rays, size, priors)
    C = len(start.rig.centre)
    fixed_pose = torch.zeros(C, dtype=torch.bool)
    known = priors.known_poses()
    if known is not None and C == len(known):
        fixed_pose = known

    def problem(level: Samples) -> Refinement:
        pixels, _ = measured_pixels(level.uv, size, priors)
        flow = priors.optical_flow
        targets = None if flow is None else flow_targets(level, flow, size, priors)
        known_focal = priors.intrinsics is not None or (rays is None and "focal_guessed" in start.notes)
        return Refinement(level, pixels, start, rays, size, fixed_pose, known_focal, targets, matches, loops)

    more = levels[1].uv.shape[1] > levels[0].uv.shape[1]
    finer = (lambda: problem(levels[1])) if more else None
    refined = refine_all(problem(levels[0]), finer, start, _focal_terms(start, rays, size, config))
    low, high = (bound * max(size) for bound in config.focal_range)
    found = refined.state.log_focal.exp()
    if (
        "focal_guessed" not in start.notes
        and priors.intrinsics is None
        and not bool(((found > low) & (found < high)).all())
    ):
        guessed = guess_focal(start, size)
        state, other, notes = _refine(levels, guessed, rays, size, priors, config, matches, loops)
        return state, other, {**notes, "focal_guessed": True}
    fusion = RobustFusion(
        along=refined.noise.along, disparity=refined.state.disparity if levels[0].disparity is not None else None,
        disparity_noise=refined.noise.disparity,
    )  # fmt: skip
    return refined.state, fusion, refined.notes


def _refine_published(
    samples: Samples, start: Start, rays: RayViews | None, size: tuple[int, int], priors: Priors
) -> tuple[State, Fusion, dict[str, Any]]:
    weights, (pixels, _) = PublishedWeights(), measured_pixels(samples.uv, size, priors)
    solution = minimise_published(samples, pixels, start, rays, weights)
    fusion = PublishedFusion(disparity=solution.state.disparity, windows=solution.disparity_windows, weights=weights)
    return solution.state, fusion, {"objective": solution.costs}


def _focal_terms(start: Start, rays: RayViews | None, size: tuple[int, int], config: AlignConfig) -> list[Term]:
    """A very weak belief about focals in general; what ray maps say, as exactly as they agree with one another."""
    own = torch.arange(len(start.rig.log_focal)) if len(start.rig.log_focal) > 1 else torch.zeros(1, dtype=torch.long)
    usual = torch.log(torch.tensor(float(max(size)), dtype=torch.float64)).expand(len(own))
    terms: list[Term] = [FocalTerm(mean=usual, sigma=torch.ones_like(usual), slot=own)]
    if rays is None:
        return terms
    if len(own) > 1:
        slot, mean = rays.frame, rays.log_focal
        return [
            *terms,
            FocalTerm(mean=mean, sigma=torch.full_like(mean, config.ray_focal_sigma * 4), slot=slot, name="ray focal"),
        ]
    middle = rays.log_focal.median()
    spread = 1.4826 * (rays.log_focal - middle).abs().median() / len(rays.window.unique()) ** 0.5
    sigma = (spread**2 + config.ray_focal_sigma**2).sqrt()
    return [*terms, FocalTerm(mean=middle[None], sigma=sigma[None], slot=own, name="ray focal")]


class _Clock:
    """Seconds per phase, and the progress callback."""

    phases = 4

    def __init__(self, progress: Progress) -> None:
        self.progress, self.last, self.last_cpu = progress, time.perf_counter(), time.process_time()
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}

    def done(self, phase: str, count: int) -> None:
        now = time.perf_counter()
        self.seconds[phase] = round(now - self.last, 4)
        cpu = time.process_time()
        self.cpu_seconds[phase] = round(cpu - self.last_cpu, 4)
        self.last, self.last_cpu = now, cpu
        self.progress(f"align: {phase}", count, self.phases)
