"""What a tracker hands over, and how pixels of one size are found in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from worldline.geometry.camera import pixel_grid
from worldline.scene import Tracks4D, Video


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """Every pixel of the first frame of a clip followed through it, with the camera's motion removed.

    Attributes:
        tracks: points in the world of the first camera, zero where the first frame sees nothing; with cameras, at the
            size of the grid.
        valid: [H, W] where the first frame sees a surface.
        moving: [H, W] whether the point moves in the world.
        pixels: [T, H, W, 2] where each point was seen, in pixels of the grid's size, NaN where it was not; or None.
        notes: what the tracker has to say about itself, JSON-able.
    """

    tracks: Tracks4D
    valid: Bool[Tensor, "H W"]
    moving: Bool[Tensor, "H W"]
    pixels: Float[Tensor, "T H W 2"] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Tracker(Protocol):
    """Turns the frames of a clip into tracks on a grid of the given size."""

    def __call__(self, name: str, video: Video, size: tuple[int, int]) -> Tracked:
        """The tracks of the clip `name`.

        Raises:
            ValueError: it cannot be tracked; the sentence says why.
        """
        ...


@runtime_checkable
class Painted(Protocol):
    """A picture of points, as `render.splat.Splat`."""

    @property
    def image(self) -> Shaped[Tensor, "H W C"]:
        """Colour of the nearest point, 0 where none falls."""
        ...

    @property
    def depth(self) -> Float[Tensor, "H W"]:
        """Its depth, 0 where none falls."""
        ...

    @property
    def coverage(self) -> Bool[Tensor, "H W"]:
        """Whether a point falls there."""
        ...


@runtime_checkable
class Splatter(Protocol):
    """Renders world points as a camera sees them, as `render.splat.splat`."""

    def __call__(
        self,
        points: Float[Tensor, "N 3"],
        colors: Shaped[Tensor, "_ C"],
        cam2world: Float[Tensor, "4 4"],
        intrinsics: Float[Tensor, "3 3"],
        size: tuple[int, int],
        radius_px: int = 1,
        near: float = 1e-6,
    ) -> Painted:
        """See `render.splat.splat`."""
        ...


def grid_in(size: tuple[int, int], other: tuple[int, int]) -> Float[Tensor, "H W 2"]:
    """Pixel centres of an image of `size`, as pixel coordinates of the same image at the `other` size."""
    scale = torch.tensor([other[1] / size[1], other[0] / size[0]], dtype=torch.float64)
    return (pixel_grid(size, torch.float64) + 0.5) * scale - 0.5


def resized(frames: Shaped[Tensor, "T H W 3"], size: tuple[int, int]) -> Float[Tensor, "T h w 3"]:
    """Frames in [0, 1] at another size: area average when shrinking, cubic when growing."""
    import cv2

    rgb = Video(frames=frames, timestamps=torch.arange(len(frames), dtype=torch.float64)).rgb()
    if tuple(rgb.shape[1:3]) == tuple(size):
        return rgb
    how = cv2.INTER_AREA if size[0] <= rgb.shape[1] and size[1] <= rgb.shape[2] else cv2.INTER_CUBIC
    shrunk = [torch.from_numpy(cv2.resize(f.numpy(), (size[1], size[0]), interpolation=how)) for f in rgb.cpu()]
    return torch.stack(shrunk).clamp(0, 1)
