"""What a system says about one window of frames: the alignment's only input besides priors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One window, in the window's own frame and scale (any similarity away from the world).

    Attributes:
        frames: which frame of the video each of the t entries is; increasing, not necessarily consecutive (a window of
            far frames closes a loop).
        points: [t, H, W, 3] point of each pixel at its own time, all frames in one coordinate frame of the window.
        confidence: [t, H, W] weight of each pixel, 0 = ignore; only ratios between pixels and windows matter.
        disparity: [t, H, W] inverse depth up to one scale and shift per window, or None; not positive = ignore.
        ray_direction: [t, h, w, 3] direction of pixel rays in the window's frame, at every (H/h)th row and (W/w)th
            column starting at (0, 0), or None.
        ray_moment: [t, h, w, 3] moment (camera centre x direction) of the same rays, in any unit, or None.
        ray_cam2world: [t, 4, 4] cameras already read off the rays (in the window's frame), used instead of reading
            them off again by the published objective, or None.
        scene_flow: [t, H, W, 3] displacement of each pixel's surface point to the next frame of the VIDEO, in the
            window's frame, or None.
        flow_valid: [t, H, W] where scene_flow means something; None = everywhere but at the video's last frame.
    """

    frames: tuple[int, ...]
    points: Float[Tensor, "t H W 3"]
    confidence: Float[Tensor, "t H W"]
    disparity: Float[Tensor, "t H W"] | None = None
    ray_direction: Float[Tensor, "t h w 3"] | None = None
    ray_moment: Float[Tensor, "t h w 3"] | None = None
    ray_cam2world: Float[Tensor, "t 4 4"] | None = None
    scene_flow: Float[Tensor, "t H W 3"] | None = None
    flow_valid: Bool[Tensor, "t H W"] | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that do not agree and numbers that are not finite where they count."""
        shape = tuple(self.points.shape[:3])
        if len(self.frames) != shape[0] or any(a >= b for a, b in zip(self.frames, self.frames[1:], strict=False)):
            raise ValueError(f"An observation of {shape[0]} frames needs as many increasing frames, got {self.frames}.")
        for name in ("confidence", "disparity", "scene_flow", "flow_valid"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape[:3]) != shape:
                raise ValueError(f"Observation.{name} is {list(value.shape)}, but the points are {list(shape)} pixels.")
        if (self.ray_direction is None) != (self.ray_moment is None):
            raise ValueError("An observation needs ray_direction and ray_moment together, or neither.")
        self._check_rays(shape)
        if (bool(self.flow_valid is not None)) and self.scene_flow is None:
            raise ValueError("Observation.flow_valid is given without scene_flow.")
        self._check_finite()

    def _check_rays(self, shape: tuple[int, ...]) -> None:
        if self.ray_direction is None or self.ray_moment is None:
            return
        size = tuple(self.ray_direction.shape[:3])
        if self.ray_moment.shape != self.ray_direction.shape or size[0] != shape[0]:
            raise ValueError(f"Ray maps are {list(size)} and {list(self.ray_moment.shape[:3])} for {shape[0]} frames.")
        if shape[1] % size[1] or shape[2] % size[2]:
            raise ValueError(
                f"Ray maps of {list(size[1:])} rows and columns do not divide images of {list(shape[1:])}."
            )

    def _check_finite(self) -> None:
        if not torch.isfinite(self.confidence).all() or bool((self.confidence < 0).any()):
            raise ValueError(
                f"Confidence of frames {self._span} has NaN, infinite or negative values; use 0 to ignore."
            )
        used = self.confidence > 0
        for name in ("points", "disparity", "scene_flow"):
            value = getattr(self, name)
            if value is None:
                continue
            finite = torch.isfinite(value)
            finite = finite.all(-1) if value.ndim == 4 else finite
            asked = used & self.flow_valid if name == "scene_flow" and self.flow_valid is not None else used
            if not finite[asked].all():
                count = int((~finite[asked]).sum())
                raise ValueError(
                    f"Observation.{name} of frames {self._span} is NaN or infinite at {count} pixels with confidence "
                    f"above 0; set their confidence to 0."
                )
        for name in ("ray_direction", "ray_moment"):
            value = getattr(self, name)
            if value is not None and not torch.isfinite(value).all():
                raise ValueError(f"Observation.{name} of frames {self._span} has NaN or infinite values.")

    @property
    def _span(self) -> str:
        return f"{self.frames[0]}-{self.frames[-1]}"

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.points.shape[1], self.points.shape[2]

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device: torch.device | str) -> Observation:
        """The same observation on another device."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in every.items() if isinstance(v, Tensor)}
        return replace(self, **moved)
