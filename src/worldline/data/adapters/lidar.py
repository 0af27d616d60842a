"""Laser points onto the pixels of a camera."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data.adapters import tracks
from worldline.geometry import camera


def depth_map(
    points_cam: Float[Tensor, "N 3"], intrinsics: Float[Tensor, "3 3"], size: tuple[int, int]
) -> Float[Tensor, "H W"]:
    """z-depth of the nearest point in every pixel, 0 where none falls.

    The scene's point then lies on the ray of the pixel's centre, up to half a pixel beside the measured one. Points of
    surfaces that only the laser sees, over the camera's horizon, are not removed.
    """
    row, column, inside = tracks.pixels(camera.project(points_cam.double(), intrinsics.double()), size)
    inside &= points_cam[:, 2] > 0.1
    depth = torch.full((size[0] * size[1],), torch.inf)
    depth.scatter_reduce_(0, (row * size[1] + column)[inside], points_cam[inside, 2].float(), "amin")
    return torch.where(depth.isfinite(), depth, torch.zeros_like(depth)).reshape(size)
