"""Where the depth of the picture comes from: one interface, and the ways to fill it (spec 3.3).

The picture goes in as it is, in [0, 1]; depth and camera come out together, and both are used.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldline.geometry.camera import intrinsics_from_focal
from worldline.geometry.pointmap import scene_depth
from worldline.scene import Scale, Video
from worldline.systems.system import Options, VideoSystem

FIELD_OF_VIEW_DEG = 55.0
"""Horizontal field of view where nothing is known about the camera."""

SAME = 1e-3
"""Depths that differ by less than this fraction are one."""

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


def without_blocks(depth: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    """Depth that is repeated for blocks of pixels, as slopes between the blocks' middles; other depth as it is.

    A network that works at fewer pixels than the picture gives stairs, and a surface would be torn at each of them
    when it is seen from elsewhere. Stairs are known by their steps being in the same rows and columns everywhere.
    """
    known = depth > 0
    if not bool(known.any()):
        return depth
    log = torch.where(known, depth, depth[known].median()).log()
    blocks = []
    for axis in (0, 1):
        steps = (log.diff(dim=axis).abs() > SAME).float()
        across = steps.mean(1 - axis)
        grid = across > 0.5
        if not bool(grid.any()) or float(across[grid].sum()) < 0.8 * float(across.sum()):
            return depth
        blocks.append(1 + int(grid.sum()))
    if any(3 * count > 2 * length for count, length in zip(blocks, depth.shape, strict=True)):
        return depth
    small = functional.interpolate(log[None, None], tuple(blocks), mode="area")
    return functional.interpolate(small, depth.shape, mode="bilinear", align_corners=False)[0, 0].exp()


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
        depth = torch.where(scene.valid[0], without_blocks(depth), depth)
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


@dataclass(frozen=True, kw_only=True)
class PackageDepth:
    """UniDepthV2 or MoGe, where their package is installed; depth and camera both are theirs.

    Attributes:
        model: the network.
        kind: which one it is.
    """

    model: Any
    kind: Literal["unidepth", "moge"]

    @classmethod
    def by_name(
        cls, kind: Literal["unidepth", "moge"], *, device: torch.device | str = "cpu", download: bool = False
    ) -> PackageDepth:
        """The published weights of one of the two (UniDepth and its weights: CC BY-NC).

        Raises:
            ValueError: the package is not installed.
            FileNotFoundError: the weights are not on this machine and `download` is off.
        """
        module, name, weights = PACKAGES[kind]
        try:
            network = getattr(importlib.import_module(module), name)
        except ImportError as error:
            package = module.split(".")[0]
            raise ValueError(f"The depth prior {kind} needs the package {package}, which is not installed.") from error
        try:
            model = network.from_pretrained(weights, local_files_only=not download)
        except OSError as error:
            raise FileNotFoundError(
                f"There are no weights {weights} on this machine; allow their download (--download)."
            ) from error
        return cls(model=model.to(device).eval(), kind=kind)

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "H W 3"]) -> DepthGuess:
        """What the model says; both count pixels from the corner of the picture, we from the middle of the first."""
        device, size = next(self.model.parameters()).device, (image.shape[0], image.shape[1])
        picture = image.clamp(0, 1).movedim(-1, 0).to(device)
        if self.kind == "unidepth":  # a byte picture, which it standardises itself (spec 3.3)
            found = self.model.infer((picture * 255).round().byte())
            depth, intrinsics = found["depth"].reshape(size), found["intrinsics"].reshape(3, 3).clone()
        else:
            found = self.model.infer(picture)
            depth = torch.where(found["mask"].bool(), found["depth"], torch.zeros_like(found["depth"]))
            intrinsics = found["intrinsics"] * found["intrinsics"].new_tensor([[size[1]], [size[0]], [1.0]])
        intrinsics = intrinsics - intrinsics.new_tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        return _guess(depth.to(image), intrinsics.to(image), "metric")


PACKAGES: dict[str, tuple[str, str, str]] = {
    "unidepth": ("unidepth.models", "UniDepthV2", "lpiccinelli/unidepth-v2-vitl14"),
    "moge": ("moge.model.v2", "MoGeModel", "Ruicheng/moge-2-vitl"),
}
"""Module, class and weights of priors that are packages of their own."""

DEPTH_FILES = (".npy", ".npz", ".png")


def read_depth(file: Path) -> tuple[Float[Tensor, "H W"], Scale]:
    """A depth map: .npy or .npz (array "depth") in any unit, or a 16-bit .png in millimetres, which is metric.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no depth map.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no depth map {file}.")
    scale: Scale = "metric" if file.suffix == ".png" else "relative"
    try:
        if file.suffix == ".png":
            from PIL import Image

            picture = Image.open(file)
            if not picture.mode.startswith("I"):
                raise ValueError("its pixels have 8 bits")
            values = np.asarray(picture, dtype=np.float32) / 1000
        else:
            loaded = np.load(file, allow_pickle=False)
            values = np.asarray(loaded["depth"] if file.suffix == ".npz" else loaded, dtype=np.float32)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"{file} is no depth map ({error}); give .npy, .npz with 'depth', or a 16-bit .png in millimetres."
        ) from error
    if values.ndim != 2:
        raise ValueError(f"{file} has shape {list(values.shape)}; a depth map is [height, width].")
    return torch.from_numpy(values.copy()), scale
