"""The nouns everything speaks: Video, Cameras, Scene4D, Tracks4D.

Conventions, everywhere: OpenCV axes (x right, y down, z forward), camera-to-world poses, world = first camera unless a
type says otherwise, pixel (row h, column w) has its centre at the integer coordinates (x, y) = (w, h).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Scale = Literal["metric", "relative"]

Progress = Callable[[str, int, int], None]
"""Reports long work as (name of the step, units done, units in total); may raise to stop the work."""


def no_progress(step: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """Frames of one video with their times.

    Attributes:
        frames: [T, H, W, 3] RGB, uint8 or float in [0, 1].
        timestamps: [T] seconds, increasing; float64.
    """

    frames: Shaped[Tensor, "T H W 3"]
    timestamps: Float[Tensor, " T"]

    def __post_init__(self) -> None:
        """Refuse shapes that do not agree."""
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(f"Video frames must have shape [T, H, W, 3], got {list(self.frames.shape)}.")
        if self.frames.dtype != torch.uint8 and not self.frames.is_floating_point():
            raise ValueError(f"Video frames must be uint8 or float in [0, 1], got {self.frames.dtype}.")
        if self.timestamps.shape != self.frames.shape[:1]:
            raise ValueError(f"{len(self.frames)} frames need as many timestamps, got {list(self.timestamps.shape)}.")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def fps(self) -> float:
        """Mean frames per second; 0 when there is only one frame."""
        span = float(self.timestamps[-1] - self.timestamps[0])
        return (len(self) - 1) / span if span > 0 else 0.0

    def rgb(self) -> Float[Tensor, "T H W 3"]:
        """Frames as float32 in [0, 1]."""
        if self.frames.dtype == torch.uint8:
            return self.frames.float() / 255
        return self.frames.float()

    def select(self, index: slice | list[int]) -> Video:
        """The video of the chosen frames."""
        return Video(frames=self.frames[index], timestamps=self.timestamps[index])


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """One pinhole camera per frame.

    Attributes:
        intrinsics: [T, 3, 3] pixels; pixel centres at integer coordinates.
        cam2world: [T, 4, 4] rigid poses, OpenCV axes.
        size: (H, W) of the images the intrinsics are for.
    """

    intrinsics: Float[Tensor, "T 3 3"]
    cam2world: Float[Tensor, "T 4 4"]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.cam2world)

    @property
    def focal_px(self) -> Float[Tensor, " T"]:
        """Geometric mean of fx and fy of each frame, in pixels."""
        return (self.intrinsics[:, 0, 0] * self.intrinsics[:, 1, 1]).sqrt()

    def select(self, index: slice | list[int]) -> Cameras:
        """The cameras of the chosen frames."""
        return replace(self, intrinsics=self.intrinsics[index], cam2world=self.cam2world[index])


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a scene came from, so that it can be made again.

    Attributes:
        system: name of the system that made it ("truth" for ground truth).
        weights_sha256: hash of the weights used, None where there are none.
        settings: everything that was chosen, JSON-able.
        source: name of the input.
        seconds: wall time of the reconstruction.
        peak_memory_bytes: peak resident memory of the process that made it.
        unreliable: names of fields that did not beat their trivial predictor on the fixed validation split; kept,
            but hidden by viewers unless asked for.
        report: what the alignment found out (objective per term, rejected windows, what could not be observed).
    """

    system: str
    weights_sha256: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    unreliable: tuple[str, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scene4D:
    """A moving world: where each pixel is, how it moves, where the cameras were.

    Attributes:
        video: the frames, at the resolution of the points.
        points: [T, H, W, 3] world point map.
        valid: [T, H, W] where points mean something (False: sky, holes).
        cameras: one per frame, or None.
        scene_flow: [T, H, W, 3] world displacement from frame t to t+1 (undefined at the last frame), or None.
        flow_valid: [T, H, W] where scene_flow means something; all False at the last frame. None iff scene_flow is.
        confidence: [T, H, W] in [0, 1], or None.
        scale: "metric" (metres) or "relative".
        provenance: how it was made.
        extras: further per-pixel truth of synthetic and dataset clips by name (object ids, normals, visibility ...).
    """

    video: Video
    points: Float[Tensor, "T H W 3"]
    valid: Bool[Tensor, "T H W"]
    cameras: Cameras | None = None
    scene_flow: Float[Tensor, "T H W 3"] | None = None
    flow_valid: Bool[Tensor, "T H W"] | None = None
    confidence: Float[Tensor, "T H W"] | None = None
    scale: Scale = "relative"
    provenance: Provenance
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse fields whose sizes do not agree."""
        shape = tuple(self.video.frames.shape[:3])
        for name in ("points", "valid", "scene_flow", "flow_valid", "confidence"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape[:3]) != shape:
                raise ValueError(f"Scene4D.{name} is {list(value.shape)}, but the video is {list(shape)} frames.")
        if (self.scene_flow is None) != (self.flow_valid is None):
            raise ValueError("Scene4D needs scene_flow and flow_valid together, or neither.")
        if self.cameras is not None and (len(self.cameras) != shape[0] or self.cameras.size != shape[1:]):
            raise ValueError(f"{len(self.cameras)} cameras of {self.cameras.size} do not fit {list(shape)} frames.")

    def __len__(self) -> int:
        return len(self.video)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.video.size

    def select(self, index: slice | list[int]) -> Scene4D:
        """The scene of the chosen frames, in the same world.

        Scene flow stays "to the next frame of the original scene": choose consecutive frames if it matters.
        """
        pick = lambda value: None if value is None else value[index]  # noqa: E731
        return replace(
            self,
            video=self.video.select(index),
            points=self.points[index],
            valid=self.valid[index],
            cameras=None if self.cameras is None else self.cameras.select(index),
            scene_flow=pick(self.scene_flow),
            flow_valid=pick(self.flow_valid),
            confidence=pick(self.confidence),
            extras={name: value[index] for name, value in self.extras.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Tracks4D:
    """Every pixel of one reference frame followed through time.

    Attributes:
        points: [T, H, W, 3] world position at time t of the surface point seen at pixel (h, w) of the reference frame.
        visible: [T, H, W] whether the camera of time t sees it.
        reference: index of the reference frame.
        colors: [H, W, 3] RGB float in [0, 1] of the reference frame.
        timestamps: [T] seconds.
        cameras: one per time, or None.
        scale: "metric" (metres) or "relative".
        provenance: how it was made.
    """

    points: Float[Tensor, "T H W 3"]
    visible: Bool[Tensor, "T H W"]
    reference: int
    colors: Float[Tensor, "H W 3"]
    timestamps: Float[Tensor, " T"]
    cameras: Cameras | None = None
    scale: Scale = "relative"
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.points)
