"""A clip cropped and at another size, without making up points.

Every output point IS an input point, as in `pointmap.resize`: of the input pixels around the centre of an output pixel,
and inside it when shrinking, the nearest valid one is taken; its flow comes with it. Only pictures are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from worldline.geometry import camera


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of pixels of an image.

    Attributes:
        top, left, height, width: in pixels.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.left, self.left + self.width)


def largest_box(source: tuple[int, int], size: tuple[int, int], zoom: float, place: tuple[float, float]) -> Box:
    """The largest box of the shape of `size`, made smaller by `zoom`, at a relative place (0, 0) to (1, 1).

    Raises:
        ValueError: the zoom is below 1.
    """
    if zoom < 1:
        raise ValueError(f"A crop is 1 / zoom of the largest one, so the zoom is 1 or more, got {zoom}.")
    scale = min(source[0] / size[0], source[1] / size[1]) / zoom
    height = min(max(round(size[0] * scale), 2), source[0])
    width = min(max(round(size[1] * scale), 2), source[1])
    top, left = round(place[0] * (source[0] - height)), round(place[1] * (source[1] - width))
    return Box(top=top, left=left, height=height, width=width)


@lru_cache(maxsize=64)
def _candidates(box: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The pixels of a box around the centre of every output pixel, nearest first: (row-major index, within reach)."""
    axes = []
    for of_box, of_output in zip(box, size, strict=True):
        scale = of_box / of_output
        centre = np.clip((np.arange(of_output) + 0.5) * scale - 0.5, 0, of_box - 1)
        low = np.minimum(np.floor(centre), max(of_box - 2, 0))
        reach = max(scale / 2, 0.5) + 1e-6
        axes.append([(k.astype(np.int64), np.abs(centre - k), np.abs(centre - k) <= reach)
                     for k in (low, np.minimum(low + 1, of_box - 1))])  # fmt: skip
    index, distance, near = [], [], []
    for row, dv, row_near in axes[0]:
        for column, du, column_near in axes[1]:
            index.append(row[:, None] * box[1] + column[None])
            distance.append(dv[:, None] ** 2 + du[None] ** 2)
            near.append(row_near[:, None] & column_near[None])
    order = np.argsort(np.stack(distance), axis=0, kind="stable")
    indices, nears = (np.take_along_axis(np.stack(values), order, 0) for values in (index, near))
    return tuple(zip(indices, nears, strict=True))


def picks(valid: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which pixel of a mask [H, W] each output pixel [h, w] takes: row-major index, and whether there is one."""
    flat = valid.reshape(-1)
    best = np.full(size, -1, np.int64)
    for index, near in reversed(_candidates((valid.shape[0], valid.shape[1]), size)):
        best = np.where(near & flat[index], index, best)
    return np.maximum(best, 0), best >= 0


def intrinsics_of(intrinsics: Float[Tensor, "T 3 3"], box: Box, size: tuple[int, int]) -> Float[Tensor, "T 3 3"]:
    """Intrinsics of the box at the output size."""
    cropped = camera.crop(intrinsics, box.top, box.left)
    return camera.resize(cropped, (box.height, box.width), size)


def pictures(rgb: np.ndarray, box: Box, size: tuple[int, int]) -> Float[Tensor, "T H W 3"]:
    """Frames uint8 [T, H, W, 3], cropped and averaged to the size, in [0, 1]."""
    cut = torch.from_numpy(np.ascontiguousarray(rgb[:, box.rows, box.columns]))
    if (box.height, box.width) != size:
        planes = cut.permute(0, 3, 1, 2)  # channels last: the uint8 path of torch, several times faster than float
        planes = functional.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
        cut = planes.permute(0, 2, 3, 1)
    return cut.float() / 255
