"""`generate` and `synthesize`: a picture begins to move, and is seen along a camera path."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from worldline.api.reconstruction import reconstruct
from worldline.api.run import choose_device, provenance_of, settings_of
from worldline.io.store import load
from worldline.io.video import load_video
from worldline.scene import Progress, Scene4D, Tracks4D, Video, no_progress
from worldline.systems.system import Loading, Offload

if TYPE_CHECKING:
    from worldline.systems.more4d.depth import DepthPrior

PICTURE_SYSTEM = "more4d-mini"


def generate(
    picture: str | Path | Video,
    prompt: str = "",
    *,
    system: str = PICTURE_SYSTEM,
    depth: str | Path | DepthPrior = "auto",
    focal_px: float | None = None,
    download: bool = False,
    size: tuple[int, int] | None = None,
    device: str = "auto",
    weights: str | None = None,
    accept_license: bool = False,
    offload: Offload = "auto",
    progress: Progress = no_progress,
    **sampling: Any,
) -> Tracks4D:
    """Let a picture move: where each of its pixels goes, in the world of its camera, which stands still.

    Args:
        picture: path of a picture or video (its first frame is used), or frames in memory.
        prompt: what happens, as in "a brown bear walks across rocky terrain".
        system: one of kind "image" from `systems()`.
        depth: where the picture's depth comes from, see `pictures.depth_prior`.
        focal_px: known focal length in pixels of the picture.
        download: whether the depth prior's weights may be fetched.
        size: (H, W) of the tracks; default the system's. The picture is cropped to the model's shape, never stretched.
        device, weights, accept_license: as for `reconstruct`.
        offload: what of the networks is on the GPU at a time.
        progress: receives (step, done, total).
        **sampling: seed (other seeds are other futures), steps, guidance, ...: see `SamplingConfig`.

    Raises:
        ValueError: unknown names, a system of another kind, or a picture whose depth is not known.
        FileNotFoundError: there is no such picture, depth map or weights.
    """
    from worldline import pictures

    started, where = time.perf_counter(), choose_device(device)
    clip = picture.select([0]) if isinstance(picture, Video) else load_video(picture, frames=slice(0, 1))
    loading = Loading(device=where, weights=weights, accept_license=accept_license, offload=offload)
    model = pictures.picture_system(system, loading)
    prior = pictures.depth_prior(depth, where, download=download) if isinstance(depth, str | Path) else depth
    if focal_px is not None:
        prior = pictures.KnownFocal(prior=prior, focal_px=focal_px)
    tracks = model.generate(clip.rgb()[0], prompt, prior, size=size, progress=progress, **sampling)
    settings = settings_of(picture, clip, system=system, depth=str(depth), focal_px=focal_px, weights=weights)
    settings["size"] = list(tracks.colors.shape[:2])
    return replace(tracks, provenance=provenance_of(tracks, settings, started))


def synthesize(
    source: Tracks4D | Scene4D | str | Path,
    path: str | Path | Tensor = "orbit",
    *,
    frames: int | None = None,
    amount: float | None = None,
    fps: float | None = None,
    fill: Literal["model", "nearest"] = "model",
    system: str = PICTURE_SYSTEM,
    prompt: str | None = None,
    size: tuple[int, int] | None = None,
    device: str = "auto",
    weights: str | None = None,
    accept_license: bool = False,
    offload: Offload = "auto",
    progress: Progress = no_progress,
    **sampling: Any,
) -> Video:
    """Look at tracks or a scene from a camera that moves; what no point covers is made up.

    Args:
        source: what `generate` or `reconstruct` gave, or a folder of it.
        path: a name or file, see `pictures.camera_poses`, or poses cam2world in the source's world.
        frames: of the video; default those of a scene, 49 for tracks; time runs evenly through the source.
        amount: how far a named path goes.
        fps: of the video; default such that it takes as long as a scene does, 12 for tracks.
        fill: "model" inpaints with a system of kind "image"; "nearest" repeats the nearest pixel.
        system, device, weights, accept_license, offload: of the inpainting model.
        prompt: what is seen; default what tracks were generated with.
        size: (H, W) of the video; default the source's.
        progress: receives (step, done, total).
        **sampling: seed, steps, guidance, ...: see `SamplingConfig`.

    Raises:
        ValueError: unknown names, or nothing to see.
        FileNotFoundError: there is no such source, path file or weights.
    """
    from worldline import pictures
    from worldline.systems.more4d import infer

    source = source if isinstance(source, Scene4D | Tracks4D) else load(source)
    poses = pictures.camera_poses(source, path, frames, amount)
    stamps = pictures.timestamps(source, len(poses), fps)
    if fill == "nearest":
        video = infer.synthesize(source, poses, None, size=size, progress=progress)
    else:
        where = choose_device(device)
        loading = Loading(device=where, weights=weights, accept_license=accept_license, offload=offload)
        words = prompt if prompt is not None else str(source.provenance.settings.get("prompt", ""))
        model = pictures.picture_system(system, loading)
        video = model.synthesize(source, poses, prompt=words, size=size, progress=progress, **sampling)
    return replace(video, timestamps=stamps)


def check_synthesis(
    video: Video, source: Tracks4D | Scene4D, path: str | Path | Tensor, *, amount: float | None = None,
    device: str = "auto", progress: Progress = no_progress,
) -> dict[str, Any]:  # fmt: skip
    """Reconstruct a synthesised video; how far its cameras and depth are what it was rendered from.

    `path` and `amount` are what the video was made with; the numbers are those of `evaluation.consistency`.
    """
    from worldline import pictures

    poses = pictures.camera_poses(source, path, len(video), amount)
    found = reconstruct(video, device=device, progress=progress)
    return pictures.check(video, found, source, poses)
