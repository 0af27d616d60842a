"""Reconstruct a video from parallax alone: cameras, dense depth, moving things, world scene flow; no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldline.align.config import Priors
from worldline.align.flow_adjust import FlowState, Matches
from worldline.flow.dis import Flow
from worldline.io.arena import Arena
from worldline.scene import Progress, Scene4D, Video, no_progress
from worldline.systems.parallax.assemble import Clock, assemble, to_world
from worldline.systems.parallax.cameras import CameraConfig, Clip, solve_cameras
from worldline.systems.parallax.dense import DenseConfig, DenseDepth, dense_depth
from worldline.systems.parallax.flow import FlowConfig, compute_flows, flow_of
from worldline.systems.parallax.known import (
    Known,
    grid_prior,
    read_frames,
    what_is_known,
    working_size,
)
from worldline.systems.parallax.observability import CameraSolution
from worldline.systems.parallax.representation import FlowPairs, take_matches
from worldline.systems.parallax.uncertainty import camera_deviation
from worldline.systems.system import Loading, Options

NOTHING_KNOWN = Priors()


@dataclass(frozen=True, kw_only=True)
class ParallaxConfig:
    """Everything that can be chosen.

    Attributes:
        pixels: most pixels per frame worked on, larger frames are reduced; None: the video's own resolution.
        flow: gaps and forward-backward weights.
        cameras: statistic, focal search, bundle adjustment.
        dense: triangulation, propagation to all pixels, moving things.
        memory_bytes: arrays of all frames, the scene's among them, live in temporary files beyond this much memory.
    """

    pixels: int | None = 320 * 240
    flow: FlowConfig = field(default_factory=FlowConfig)
    cameras: CameraConfig = field(default_factory=CameraConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    memory_bytes: int = 1 << 30


def infer(
    video: Video,
    config: ParallaxConfig = ParallaxConfig(),
    *,
    prior: Float[Tensor, "T h w"] | None = None,
    priors: Priors = NOTHING_KNOWN,
    flow: Flow | None = None,
    cache: Any = None,
    progress: Progress = no_progress,
) -> Scene4D:
    """Cameras, depth everywhere with confidence, moving mask and scene flow of a video.

    Args:
        video: any number of frames, at least one.
        config: see there.
        prior: z-depth per frame from elsewhere, each frame up to a scale of its own, NaN or <= 0 where unknown; at any
            resolution with the video's aspect.
        priors: what is known beforehand; used here: intrinsics, principal point, static camera, moving mask.
        flow: dense flow to use instead of DIS.
        cache: where cameras are kept so that a stopped run can go on (`io.store.PartialRun`), or None.
        progress: called along the way.

    Returns:
        A scene at the working resolution, median confident depth 1; `extras["dynamic"]` is the moving mask, and
        `provenance.report` says what was and was not observable.

    Raises:
        ValueError: the video has no frames, or a prior does not fit it.
    """
    if len(video) == 0:
        raise ValueError("The video has no frames; give at least one.")
    priors.check(len(video), video.size)
    clock, arena = Clock(), Arena(config.memory_bytes)
    # 1. Frames at the working resolution, and what is known before looking at them.
    rgb, gray = read_frames(video, working_size(video.size, config.pixels), arena)
    frames = list(rgb)
    known = what_is_known(video, gray[0].shape, config.cameras.default_focal, prior, priors, arena)
    # 2. Dense flow at several gaps, both ways, and its matches on a grid.
    method = flow or flow_of("dis", config.flow)
    pairs = clock("flow", lambda: compute_flows(frames, method, config.flow, progress, arena))
    matches = take_matches(pairs, config.cameras.grid_points, arena, known.moving)
    # 3. Cameras: what can be known, focal length, several starts, bundle adjustment.
    solution = clock("cameras", lambda: find_cameras(matches, pairs, known, config, cache, progress))
    # 4. Depth of every pixel, its confidence, and what moves.
    dense = clock(
        "depth", lambda: find_depth(frames, list(gray), pairs, matches, solution, known, config, progress, arena)
    )
    # 5. World points and scene flow at unit scale.
    arrays = clock("scene", lambda: to_world(pairs, solution, dense, priors, video.size, arena))
    return assemble(video, rgb, solution, dense, arrays, asdict(config), clock)


def find_cameras(
    matches: Matches, pairs: FlowPairs, known: Known, config: ParallaxConfig, cache: Any, progress: Progress
) -> CameraSolution:
    """Cameras and focal length, from the cache if an earlier run had got so far."""
    weight = config.cameras.prior_weight
    clip = Clip(
        matches=matches,
        offsets=pairs.offsets,
        intrinsics=known.intrinsics,
        known_focal=known.focal,
        longer_side=max(pairs.size),
        static=known.static,
        poses=known.poses,
        prior=None if known.inverse is None else grid_prior(known.inverse, matches, weight),
    )
    return cached_cameras(cache, lambda: solve_cameras(clip, config.cameras, progress))


def find_depth(
    rgb: list[np.ndarray],
    gray: list[np.ndarray],
    pairs: FlowPairs,
    matches: Matches,
    solution: CameraSolution,
    known: Known,
    config: ParallaxConfig,
    progress: Progress,
    arena: Arena,
) -> DenseDepth:
    """Depth of every pixel with the cameras found, which a prior is weighed against as far as they are loose."""
    settings = config.cameras
    loose = (matches, solution, known.focal, settings.sigma_px, settings.focal_spread)
    return dense_depth(
        rgb,
        gray,
        pairs,
        solution.state,
        config.dense,
        see_depth=solution.kind == "full" and not (solution.noise and known.inverse is not None),
        prior=known.inverse,
        known_moving=known.moving,
        camera_deviation=0.0 if known.inverse is None else camera_deviation(*loose),
        progress=progress,
        arena=arena,
    )


@dataclass(frozen=True, kw_only=True)
class ParallaxSystem:
    """The system as the registry wants it: works at the resolution of the video it is given."""

    config: ParallaxConfig = ParallaxConfig(pixels=None)
    parameters: int = 0

    def reconstruct(self, video: Video, options: Options) -> Scene4D:
        """One scene for the whole video."""
        flow = flow_of(options.flow, self.config.flow)
        known: dict[str, Any] = {"priors": options.priors, "cache": options.cache, "progress": options.progress}
        return infer(video, self.config, flow=flow, **known)


def load_parallax(loading: Loading) -> ParallaxSystem:
    """The system; there is nothing to load, and it runs on the CPU whatever device is asked for."""
    return ParallaxSystem()


def cached_cameras(cache: Any, solve: Callable[[], CameraSolution]) -> CameraSolution:
    """Cameras from the cache, else solved and put there."""
    import json

    if cache is not None and (found := cache.get("cameras")) is not None:
        rest = json.loads(bytes(found["rest"].tolist()).decode())
        rest["warnings"] = tuple(rest["warnings"])
        arrays = {name: found[name].numpy().copy() for name in ("w2c", "intrinsics", "r", "log_scale")}
        registered = found["registered"].numpy().copy()
        return CameraSolution(state=FlowState(**arrays), registered=registered, **rest)
    solution = solve()
    if cache is not None:
        rest = {name: getattr(solution, name) for name in ("kind", "focal", "posed", "noise", "report", "warnings")}
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in vars(solution.state).items()}
        tensors["registered"] = torch.from_numpy(solution.registered.copy())
        tensors["rest"] = torch.tensor(list(json.dumps(rest).encode()), dtype=torch.uint8)
        cache.put("cameras", tensors)
    return solution
