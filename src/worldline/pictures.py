"""What `api.generate` and `api.synthesize` put together: depth priors and camera paths by name, and the check.

A picture's depth may come from another system than its motion, and systems do not know each other; so they meet here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.geometry.camera import intrinsics_from_focal
from worldline.geometry.pointmap import to_camera
from worldline.render import path_files, paths, presets
from worldline.scene import Progress, Scene4D, Tracks4D, Video, no_progress
from worldline.systems.more4d import depth, infer, splatting
from worldline.systems.more4d.depth import DepthGuess, DepthPrior
from worldline.systems.registry import CARDS, of_kind
from worldline.systems.system import Loading, PictureSystem, VideoSystem

EMBEDDED_DEPTH = "motioncrafter-mini"
DEFAULT_FRAMES, DEFAULT_FPS = 49, 12.0
"""Of a video of tracks; one of a scene has the scene's."""


def picture_system(name: str, loading: Loading) -> PictureSystem:
    """A loaded system of kind "image"."""
    loaded = of_kind(name, "image").load(loading)
    assert isinstance(loaded, PictureSystem)
    return loaded


def depth_prior(name: str | Path, device: torch.device, *, download: bool = False) -> DepthPrior:
    """Where the depth of a picture comes from, by name.

    "auto" is the embedded network; names of other video systems work, too. A path is a depth map (.npy, .npz, .png).
    "unidepth" and "moge" need their packages; "transformers:NAME" is a metric depth model of that library, such as
    "transformers:apple/DepthPro-hf", by hub name or folder.

    Raises:
        ValueError: unknown, or its package is not installed.
        FileNotFoundError: there is no such map, or its weights are not here and `download` is off.
    """
    text = str(name)
    if text.startswith("transformers:"):
        return depth.TransformersDepth.by_name(text.removeprefix("transformers:"), device=device, download=download)
    if text == "unidepth" or text == "moge":
        kind: Literal["unidepth", "moge"] = "unidepth" if text == "unidepth" else "moge"
        return depth.PackageDepth.by_name(kind, device=device, download=download)
    if isinstance(name, Path) or Path(text).suffix in depth.DEPTH_FILES:
        values, scale = depth.read_depth(Path(text))
        return depth.GivenDepth(depth=values, scale=scale)
    if text != "auto" and text not in CARDS:
        systems = ", ".join(name for name, other in CARDS.items() if other.kind == "video" and other.needs == ())
        raise ValueError(
            f"There is no depth prior {text!r}; choose auto, a depth map ({', '.join(depth.DEPTH_FILES)}), "
            f"unidepth, moge, transformers:NAME, or a system: {systems}."
        )
    loaded = of_kind(EMBEDDED_DEPTH if text == "auto" else text, "video").load(Loading(device=device))
    assert isinstance(loaded, VideoSystem)
    return depth.SystemDepth(system=loaded)


@dataclass(frozen=True, kw_only=True)
class KnownFocal:
    """A depth prior whose camera is known better.

    Attributes:
        prior: gives the depth.
        focal_px: of the picture, in its own pixels.
    """

    prior: DepthPrior
    focal_px: float

    def __call__(self, image: Float[Tensor, "H W 3"]) -> DepthGuess:
        """The prior's depth with the known camera.

        Raises:
            ValueError: the focal length is not positive.
        """
        if not self.focal_px > 0:
            raise ValueError(f"A focal length of {self.focal_px} pixels makes no sense; give a positive one.")
        guess = self.prior(image)
        known = intrinsics_from_focal(guess.depth.new_tensor(self.focal_px), (image.shape[0], image.shape[1]))
        return replace(guess, intrinsics=known)


def camera_poses(
    source: Tracks4D | Scene4D, path: str | Path | Tensor, frames: int | None = None, amount: float | None = None
) -> Float[Tensor, "T 4 4"]:
    """Poses of a camera path by name, or of a path file, beginning at the input view of tracks or of a scene.

    Names: those of `render.paths` (orbit, dolly_in, left, ...; `amount` says how far) and MoRe4D's presets
    (surrounding, mix1, ...). Poses are taken as they are.

    Raises:
        ValueError: an unknown name, a file that is no path, or nothing to look at.
        FileNotFoundError: there is no such file.
    """
    if isinstance(path, Tensor):
        return path
    if frames is None:
        frames = len(source) if isinstance(source, Scene4D) else max(len(source), DEFAULT_FRAMES)
    start, name = splatting.input_pose(source), str(path)
    if name in paths.NAMES or name in presets.PRESETS:
        shown = splatting.solid(source, 0) & source.points[0].isfinite().all(-1)
        seen = to_camera(source.points[:1].to(start), start[None])[0][shown]
        if not len(seen):
            raise ValueError("There is nothing to look at: no point of the input view is known.")
        if name in paths.NAMES:
            return paths.camera_path(name, start, float(seen[:, 2].median()), frames, amount)
        return presets.preset_path(name, start, seen.mean(0), frames)
    if not Path(path).exists():
        known = ", ".join(dict.fromkeys((*paths.NAMES, *presets.PRESETS)))
        raise FileNotFoundError(f"There is no camera path or file {name!r}; choose a file, or one of: {known}.")
    return path_files.load_path(path).poses(frames, start)


def timestamps(source: Tracks4D | Scene4D, frames: int, fps: float | None) -> Float[Tensor, " T"]:
    """Times of a video's frames: a scene's video takes as long as the scene, if nothing else is asked for."""
    if fps is None:
        own = 0.0 if isinstance(source, Tracks4D) else source.video.fps
        fps = own * max(frames - 1, 1) / max(len(source) - 1, 1) or DEFAULT_FPS
    if not fps > 0:
        raise ValueError(f"A video cannot have {fps:g} frames per second; give a positive number.")
    return torch.arange(frames, dtype=torch.float64) / fps


def check(
    video: Video,
    found: Scene4D,
    source: Tracks4D | Scene4D,
    poses: Float[Tensor, "T 4 4"],
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Numbers of `evaluation.consistency`: a synthesised video, reconstructed, against what it was rendered from."""
    from worldline.evaluation.consistency import consistency

    size = splatting.size_of(source)
    seen = splatting.render(source, poses, infer.times_of(source, len(poses)), size=size, progress=progress)
    return consistency(found, poses, seen.depth, seen.coverage)
