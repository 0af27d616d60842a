"""`reconstruct`: a video to one scene, by any system, refined by parallax or not."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from worldline.align.config import Priors
from worldline.align.prior_files import PriorFiles
from worldline.api import choice
from worldline.api.choice import Choice
from worldline.api.run import check_size, choose_device, clip_of, provenance_of, settings_of, working_size
from worldline.geometry import camera as camera_geometry
from worldline.io.arena import Arena
from worldline.io.store import PartialRun
from worldline.io.video import VideoReader, parse_frames
from worldline.scene import Progress, Scene4D, Video, no_progress
from worldline.systems.registry import Card, card, of_kind
from worldline.systems.system import Loading, Options, VideoSystem, WindowSystem

AUTO = "auto"
AUTO_PRIOR = choice.EMBEDDED
PARALLAX = "parallax"
REFINE = ("auto", PARALLAX, "none")


def reconstruct(
    video: str | Path | Video,
    *,
    system: str = "auto",
    frames: slice | str | None = None,
    size: tuple[int, int] | None = None,
    window: int | None = None,
    overlap: int | None = None,
    device: str = "auto",
    seed: int = 0,
    weights: str | None = None,
    accept_license: bool = False,
    refine: str = "auto",
    focal_px: float | None = None,
    priors: Priors | PriorFiles | None = None,
    resume_beside: str | Path | None = None,
    progress: Progress = no_progress,
) -> Scene4D:
    """Turn a video into a 4D scene at `size`: points, scene flow and cameras in the world of the first camera.

    Args:
        video: path of a video, picture or folder of pictures, or frames in memory.
        system: a name from `systems()`; "auto" is the parallax system with the depth of the network that
            `choice.choose` takes as its prior; the scene's report says under "auto" which, and why.
        frames: which frames, a slice or "start:stop:step".
        size: (H, W) to work at; default near what the system is made for, same aspect ratio, never enlarged.
        window, overlap: frames per window and frames that windows share; default the system's own.
        device, seed: "auto" (CUDA, else MPS, else CPU) or a torch device; for systems that draw random numbers.
        weights, accept_license: folder or hub repository of other weights, and whether their licence is accepted.
        refine: "parallax" takes the depth of any system as the prior of the parallax system; "none" leaves a system's
            scene as it is, for system "auto" that of its network; "auto": parallax for system "auto", none for others.
        focal_px: known focal length, in pixels of the source; principal point at its centre.
        priors: known intrinsics, poses, masks or scale, at the size worked at; or files of them, as of the original.
        resume_beside: output path; finished windows are kept beside it so that an interrupted run resumes.
        progress: receives (step, done, total).

    Raises:
        ValueError: for unknown systems, empty frame ranges, unusable sizes or non-finite pixels.
        FileNotFoundError: if there is no such video or no such weights.
    """
    # 1. What runs, and where.
    started, refined = time.perf_counter(), _refined(system, refine)
    loading = Loading(device=choose_device(device), weights=weights, accept_license=accept_license)
    chosen_network = network_of(system, loading)
    prior = of_kind(chosen_network.system, "video")
    entry = card(PARALLAX) if refined else prior
    # 2. The frames, at the size the system works at, and what is known about them.
    source = video.size if isinstance(video, Video) else VideoReader(video).size
    clip = clip_of(video, frames, check_size(source, size, entry))
    given, flow = _flow_of(priors, entry)
    known = _with_focal(_read(given, clip, source, frames), focal_px, source, clip.size)
    chosen: dict[str, Any] = {"window": window, "overlap": overlap, "seed": seed}
    said = {"system": system, "network": prior.name, "refine": refine, "weights": weights, **_files(priors)}
    settings = settings_of(video, clip, **said, frames=str(frames), focal_px=focal_px, **chosen)
    # 3. The scene, and how it was made.
    cache = None if resume_beside is None else PartialRun(Path(resume_beside), settings)
    options = Options(priors=known, flow=flow, cache=cache, progress=progress, **chosen)
    seen = _larger(video, frames, source, clip.size, prior) if refined else None
    scene = (prior_and_parallax if refined else _alone)(clip, loading, options, prior, seen)
    scene = _said(scene, chosen_network) if system == AUTO else scene
    return replace(scene, provenance=provenance_of(scene, settings, started))


def _flow_of(
    priors: Priors | PriorFiles | None, entry: Card
) -> tuple[Priors | PriorFiles | None, Literal["dis", "learned"]]:
    """The parallax system finds flow itself, by the method named; others are given it with what is known beforehand."""
    if entry.name != PARALLAX or not isinstance(priors, PriorFiles) or priors.flow == "none":
        return priors, "dis"
    return replace(priors, flow="none"), priors.flow


def _larger(
    video: str | Path | Video, frames: slice | str | None, source: tuple[int, int], size: tuple[int, int], prior: Card
) -> Video | None:
    """The frames at the size a network was made for, where that is larger than the size worked at."""
    return clip_of(video, frames, working_size(source, prior)) if prior.area > size[0] * size[1] else None


def _read(
    priors: Priors | PriorFiles | None, clip: Video, source: tuple[int, int], frames: slice | str | None
) -> Priors:
    """What is known about the chosen frames, read from files if need be."""
    if isinstance(priors, PriorFiles):
        return priors.read(clip, source, parse_frames(frames) if isinstance(frames, str) else frames)
    return priors or Priors()


def _refined(system: str, refine: str) -> bool:
    """Whether the parallax system takes the chosen system's depth as its prior."""
    if refine not in REFINE:
        raise ValueError(f"There is no refinement '{refine}'; choose one of: {', '.join(REFINE)}.")
    if refine == "auto":
        return system == AUTO
    return refine == PARALLAX and system != PARALLAX


def network_of(system: str, loading: Loading) -> Choice:
    """The network that a system name stands for, and why; weights of the user's own are for the embedded one."""
    if system != AUTO:
        return Choice(system=system, reason="it was asked for")
    if loading.weights is not None:
        return Choice(system=AUTO_PRIOR, reason="the weights given are for the embedded network")
    published = choice.published_networks(loading.accept_license) if loading.device.type == "cuda" else []
    return choice.choose(choice.machine_of(loading.device), published)


def _said(scene: Scene4D, found: Choice) -> Scene4D:
    """The scene with the choice of "auto" in its report."""
    report = {**scene.provenance.report, "auto": {"network": found.system, "reason": found.reason}}
    return replace(scene, provenance=replace(scene.provenance, report=report))


def _files(priors: Priors | PriorFiles | None) -> dict[str, Any]:
    """What the settings say about files of priors."""
    return {"priors": repr(priors)} if isinstance(priors, PriorFiles) else {}


def _alone(clip: Video, loading: Loading, options: Options, entry: Card, seen: Video | None) -> Scene4D:
    """The scene of a system by itself, which sees `clip`."""
    return _video_system(entry, loading).reconstruct(clip, options)


def _video_system(entry: Card, loading: Loading) -> VideoSystem:
    loaded = entry.load(loading)
    assert isinstance(loaded, VideoSystem)
    return loaded


def prior_and_parallax(
    clip: Video, loading: Loading, options: Options, prior: Card | None = None, seen: Video | None = None
) -> Scene4D:
    """The default system: what a network believes, corrected by the parallax it can be checked against.

    `clip` has the size to work at; `prior` is the network's system, by default the embedded one, with the weights of
    `loading` and the windows of `options`; `seen` is the same frames at the size the network was made for, by default
    `clip` shrunk to it. The scene is the parallax system's.

    Raises:
        ValueError: the system of `prior` does not look at windows of a video.
    """
    from worldline.align.window_depth import frame_depths
    from worldline.systems.parallax.flow import flow_of
    from worldline.systems.parallax.infer import ParallaxConfig, infer

    # 1. What the network says about windows of the video, at the size it was trained for.
    entry, config = prior or card(AUTO_PRIOR), ParallaxConfig(pixels=None)
    small = clip_of(clip, None, working_size(clip.size, entry)) if seen is None else seen
    network = _video_system(entry, loading)
    if not isinstance(network, WindowSystem):
        raise ValueError(f"The depth of {entry.name} cannot be refined by {PARALLAX}; leave out --refine.")
    windows = network.observe(small, options)
    # 2. Its depth as a prior, each frame up to scale; the network's cameras and motion are not needed.
    depth = frame_depths(windows, len(small), Arena(config.memory_bytes))
    # 3. Cameras, depth and motion from flow, with that prior where flow says nothing.
    known: dict[str, Any] = {"priors": options.priors, "cache": options.cache, "progress": options.progress}
    scene = infer(clip, config, prior=depth, flow=flow_of(options.flow, config.flow), **known)
    made_by = replace(scene.provenance, system=f"{PARALLAX}+{entry.name}", weights_sha256=network.weights_sha256)
    return replace(scene, provenance=made_by)


def _with_focal(priors: Priors, focal_px: float | None, source: tuple[int, int], size: tuple[int, int]) -> Priors:
    """The priors with a focal length that was given in pixels of the source."""
    if focal_px is None:
        return priors
    if not focal_px > 0:
        raise ValueError(f"A focal length of {focal_px} pixels makes no sense; give a positive one.")
    intrinsics = camera_geometry.intrinsics_from_focal(float(focal_px), source)
    return replace(priors, intrinsics=camera_geometry.resize(intrinsics, source, size))
