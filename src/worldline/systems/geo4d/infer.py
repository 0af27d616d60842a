"""Geo4D on a video of any length and size: observe overlapping windows, align them, one scene (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from worldline import windows
from worldline.align import solve as alignment
from worldline.align.config import Priors
from worldline.align.observation import Observation
from worldline.align.streaming import StreamedWindows
from worldline.geometry import fit, pointmap
from worldline.scene import Progress, Provenance, Scene4D, Video, no_progress
from worldline.systems.geo4d.config import Modality
from worldline.systems.geo4d.networks import Geo4D
from worldline.systems.geo4d.observe import DEFAULTS as DEFAULTS
from worldline.systems.geo4d.observe import InferConfig as InferConfig
from worldline.systems.geo4d.observe import Observer as Observer

DISPARITY_SAMPLES = 20_000
"""Pixels of a window that its disparity is fitted on."""

WINDOW_KEY = "window-"
"""What the names of kept windows begin with."""

NO_PRIORS = Priors()
UNKNOWN = Provenance(system="geo4d")


@runtime_checkable
class WindowCache(Protocol):
    """Keeps finished windows, so that an interrupted run continues (`io.store.PartialRun`)."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was put under this key, or None."""
        ...

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors under this key."""
        ...


def infer(
    video: Video,
    model: Geo4D,
    config: InferConfig = DEFAULTS,
    *,
    cache: WindowCache | None = None,
    progress: Progress = no_progress,
    priors: Priors = NO_PRIORS,
    provenance: Provenance = UNKNOWN,
) -> Scene4D:
    """Reconstruct a video: world points and a camera for every frame, at the video's size.

    Raises:
        ValueError: windows that do not overlap, or priors that do not fit the video.

    Returns:
        The scene; `extras["disparity"]` is what `world_disparity` says, if that modality is used.
    """
    # 1. what the networks say about overlapping windows: points, disparity and rays in each window's own frame
    observations = observe_all(video, model, config, cache=cache, progress=progress)
    # 2. one world, and a camera for every frame (eq. 4-10)
    seen = told(observations, config.modalities)
    aligned = alignment.solve(seen, len(video), video.size, priors, config.align, progress, shelf=cache)
    # 3. the scene, and how it was made
    settings = {
        **provenance.settings,
        "steps": config.steps or model.config.steps,
        "final": config.final,
        "seeds": list(config.seeds),
        "modalities": list(config.modalities),
        "windows": len(observations),
    }
    scene = aligned.scene(video, replace(provenance, settings=settings))
    if "disparity" not in config.modalities:
        return scene
    return replace(scene, extras={**scene.extras, "disparity": world_disparity(seen, scene)})


def world_disparity(observations: Sequence[Observation], scene: Scene4D) -> Float[Tensor, "T H W"]:
    """What the disparity maps say, in the world's unit: 1 / depth, 0 for infinitely far; known at every pixel.

    Each window's map is brought onto the inverse depth of the finished scene by one scale and shift (s, b of eq. 5),
    then windows are averaged. Unlike the scene's own depth it goes on where points are not valid.
    """
    inverse = 1 / pointmap.scene_depth(scene).clamp(min=1e-6)
    total, count = torch.zeros_like(inverse), torch.zeros(len(inverse))
    for observation in observations:
        frames, found = list(observation.frames), observation.disparity
        if found is None:
            continue
        known = (scene.valid[frames] & (observation.confidence > 0)).flatten()
        step = max(1, int(known.sum()) // DISPARITY_SAMPLES)
        picked = torch.nonzero(known)[::step, 0]
        if len(picked) > 1:
            scale, shift = fit.scale_shift_l1(found.flatten()[picked], inverse[frames].flatten()[picked])
            total[frames] += scale * found + shift
            count[frames] += 1
    average = total / count.clamp(min=1)[:, None, None]
    return torch.where(count[:, None, None] > 0, average, inverse * scene.valid).clamp(min=0)


def observe_all(
    video: Video,
    model: Geo4D,
    config: InferConfig = DEFAULTS,
    *,
    cache: WindowCache | None = None,
    progress: Progress = no_progress,
) -> StreamedWindows:
    """What the networks say about every window of a video, before they are aligned.

    With a cache the windows stay there and are read again when they are asked for, so that memory does not grow with
    their number.

    Raises:
        ValueError: windows that do not overlap.
    """
    plan = window_plan(len(video), model, config)
    observer = Observer(video, model, config)
    observations = []
    for done, window in enumerate(plan):
        progress("windows", done, len(plan))
        made = _cached(cache, window, observer)
        observations.append(made if cache is None else None)
    progress("windows", len(plan), len(plan))
    return StreamedWindows(lambda k: observations[k] or _cached(cache, plan[k], observer), len(plan))


def observe_each(
    video: Video,
    model: Geo4D,
    config: InferConfig = DEFAULTS,
    *,
    cache: WindowCache | None = None,
    progress: Progress = no_progress,
) -> Iterator[Observation]:
    """The same one at a time, for who looks at each only once; nothing is kept but in the cache."""
    plan = window_plan(len(video), model, config)
    observer = Observer(video, model, config)
    for done, window in enumerate(plan, 1):
        yield _cached(cache, window, observer)
        progress("windows", done, len(plan))


def told(observations: Sequence[Observation], modalities: tuple[Modality, ...]) -> StreamedWindows:
    """The same windows without what the alignment is not to know."""
    return StreamedWindows(lambda k: _told(observations[k], modalities), len(observations))


def window_plan(num_frames: int, model: Geo4D, config: InferConfig) -> list[range]:
    """The windows of a video; they overlap, as nothing else says how two windows lie to one another.

    Raises:
        ValueError: a stride that leaves windows apart.
    """
    window, stride = model.config.window, model.config.stride if config.stride is None else config.stride
    if num_frames > window and not 1 <= stride < window:
        raise ValueError(f"Windows of {window} frames need a stride of 1 to {window - 1} to overlap, got {stride}.")
    return windows.plan_stride(num_frames, window, min(stride, window))


def _told(observation: Observation, modalities: tuple[Modality, ...]) -> Observation:
    """An observation without what the alignment is not to know."""
    gone: dict[str, Any] = {} if "disparity" in modalities else {"disparity": None}
    if not {"ray_direction", "ray_moment"} <= set(modalities):
        gone |= {"ray_direction": None, "ray_moment": None}
    return replace(observation, **gone)


def _cached(cache: WindowCache | None, window: range, observer: Observer) -> Observation:
    """A finished window of an earlier run, or a new one."""
    key = f"{WINDOW_KEY}{window.start:06d}-{window.stop:06d}"
    kept = None if cache is None else cache.get(key)
    if kept is not None:
        return Observation(frames=tuple(window), **kept)
    made = observer.observe(window)
    if cache is not None:
        names = ("points", "confidence", "disparity", "ray_direction", "ray_moment")
        found = {name: getattr(made, name) for name in names}
        cache.put(key, {name: value for name, value in found.items() if value is not None})
    return made
