"""Where the depth of the picture comes from: one interface, and four ways to fill it (spec 3.3).

The picture goes in as it is, in [0, 1]; depth and camera come out together, and both are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry.camera import intrinsics_from_focal
from worldline.geometry.pointmap import scene_depth
from worldline.scene import Scale, Video
from worldline.systems.system import Options, VideoSystem

FIELD_OF_VIEW_DEG = 55.0
"""Horizontal field of view where nothing is known about the camera."""

BEYOND = 1.5
"""Where nothing is known (sky), depth is this many times the farthest that is known."""


@dataclass(frozen=True, kw_only=True)
class DepthGuess:
    """Depth of a picture, and its camera.

    Attributes:
        depth: [H, W] z-depth; positive and finite where valid.
        valid: [H, W] where it means something.
        intrinsics: [3, 3] pixels, centres at integers.
        scale: "metric" or "relative".
    """

    depth: Float[Tensor, "H W"]
    valid: Bool[Tensor, "H W"]
    intrinsics: Float[Tensor, "3 3"]
    scale: Scale = "relative"

    def filled(self) -> Float[Tensor, "H W"]:
        """Depth with everything unknown put behind the scene.

        Raises:
            ValueError: nothing is known.
        """
        if not bool(self.valid.any()):
            raise ValueError("The depth prior knows no depth for any pixel of this picture; give a depth map.")
        return torch.where(self.valid, self.depth, BEYOND * self.depth[self.valid].max())


@runtime_checkable
class DepthPrior(Protocol):
    """Anything that guesses depth and camera of a picture."""

    def __call__(self, image: Float[Tensor, "H W 3"]) -> DepthGuess:
        """Depth of a picture in [0, 1], at its size."""
        ...


def camera_of(size: tuple[int, int], field_of_view_deg: float, like: Tensor) -> Float[Tensor, "3 3"]:
    """Intrinsics of a camera with a horizontal field of view, its axis in the middle of the picture."""
    focal = size[1] / 2 / math.tan(math.radians(field_of_view_deg) / 2)
    return intrinsics_from_focal(like.new_tensor(focal), size)


def _guess(depth: Tensor, intrinsics: Tensor, scale: Scale) -> DepthGuess:
    known = depth.isfinite() & (depth > 0)
    depth = torch.where(known, depth, torch.zeros_like(depth))
    return DepthGuess(depth=depth, valid=known, intrinsics=intrinsics, scale=scale)


@dataclass(frozen=True, kw_only=True)
class GivenDepth:
    """A depth map that is at hand; 0, NaN and infinite mean unknown.

    Attributes:
        depth: [H, W] at the picture's size.
        intrinsics: of the camera, or None for one with `FIELD_OF_VIEW_DEG`.
        scale: unit of the depth.
    """

    depth: Float[Tensor, "H W"]
    intrinsics: Float[Tensor, "3 3"] | None = None
    scale: Scale = "relative"

    def __call__(self, image: Float[Tensor, "h w 3"]) -> DepthGuess:
        """The map itself.

        Raises:
            ValueError: it has another size than the picture.
        """
        size = (image.shape[0], image.shape[1])
        if tuple(self.depth.shape) != size:
            raise ValueError(f"The depth map is {list(self.depth.shape)}, but the picture is {list(size)}; resize it.")
        camera = camera_of(size, FIELD_OF_VIEW_DEG, self.depth) if self.intrinsics is None else self.intrinsics
        return _guess(self.depth, camera.to(self.depth), self.scale)


@dataclass(frozen=True, kw_only=True)
class SystemDepth:
    """Any system that reconstructs videos, shown the picture as a video of a few equal frames.

    Attributes:
        system: the system.
        frames: how many.
    """

    system: VideoSystem
    frames: int = 1

    def __call__(self, image: Float[Tensor, "H W 3"]) -> DepthGuess:
        """Depth and camera of the first frame."""
        frames = image[None].expand(self.frames, -1, -1, -1)
        video = Video(frames=frames, timestamps=torch.arange(self.frames, dtype=torch.float64) / 24)
        scene = self.system.reconstruct(video, Options())
        if scene.cameras is None:
            raise ValueError("This system gives no camera; choose another one, or give a depth map.")
        depth = torch.where(scene.valid[0], scene_depth(scene)[0], torch.zeros_like(scene.points[0, ..., 2]))
        return _guess(depth.to(image), scene.cameras.intrinsics[0].to(image), scene.scale)


@dataclass(frozen=True, kw_only=True)
class TransformersDepth:
    """A metric depth model of the transformers library; those that also guess the camera (Depth Pro) are best.

    Attributes:
        model: predicts `predicted_depth` and perhaps `field_of_view`.
        processor: its image processor.
    """

    model: Any
    processor: Any

    @classmethod
    def by_name(cls, name: str, *, device: torch.device | str = "cpu", download: bool = False) -> TransformersDepth:
        """A model by its folder or hub name, such as "apple/DepthPro-hf".

        Raises:
            FileNotFoundError: it is not on this machine and `download` is off.
        """
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        try:
            processor = AutoImageProcessor.from_pretrained(name, local_files_only=not download)
            model = AutoModelForDepthEstimation.from_pretrained(name, local_files_only=not download)
        except OSError as error:
            raise FileNotFoundError(f"There is no depth model {name} on this machine; allow its download.") from error
        return cls(model=model.to(device).eval(), processor=processor)

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "H W 3"]) -> DepthGuess:
        """What the model says, with its own field of view if it has one."""
        size = (image.shape[0], image.shape[1])
        picture = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
        inputs = self.processor(images=picture, return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        found = self.processor.post_process_depth_estimation(outputs, target_sizes=[size])[0]
        view = found.get("field_of_view")
        degrees = FIELD_OF_VIEW_DEG if view is None else float(view)
        depth = found["predicted_depth"].to(image)
        return _guess(depth, camera_of(size, degrees, depth), "metric")
