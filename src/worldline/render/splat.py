"""Z-buffered point splatting: a coloured point cloud seen by a pinhole camera, with a true coverage mask.

Every point covers a disc of `radius_px` pixels around the pixel its projection rounds to, and the nearest one wins.
Away from the centre the disc is pushed back by 2 % of the depth per squared pixel, so that it fills gaps and hides what
is behind, but never overwrites a neighbour on the same surface: at the camera the points came from, the picture comes
back unchanged. Coverage is counted, not guessed from black pixels.

On a CPU a numba loop, elsewhere an exact and deterministic reduction in torch: the minimum over 64-bit keys, depth in
the high half (positive floats order like their bits) and the point's index in the low half. Both give the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from worldline.geometry.camera import project
from worldline.geometry.pose import inverse, transform

PUSH_PER_PX2 = 0.02
Backend = Literal["auto", "numba", "torch"]


@dataclass(frozen=True, kw_only=True)
class Splat:
    """A picture of points.

    Attributes:
        image: [H, W, C] colour of the nearest point, 0 where none falls.
        depth: [H, W] z of that point in the camera, 0 where none falls.
        coverage: [H, W] whether any point falls there.
        index: [H, W] index of the point, -1 where none falls.
    """

    image: Shaped[Tensor, "H W C"]
    depth: Float[Tensor, "H W"]
    coverage: Bool[Tensor, "H W"]
    index: Int[Tensor, "H W"]


def splat(
    points: Float[Tensor, "N 3"],
    colors: Shaped[Tensor, "_ C"],
    cam2world: Float[Tensor, "4 4"],
    intrinsics: Float[Tensor, "3 3"],
    size: tuple[int, int],
    radius_px: int = 1,
    near: float = 1e-6,
    backend: Backend = "auto",
    push: float = PUSH_PER_PX2,
) -> Splat:
    """Render world points as the camera sees them.

    Args:
        points: world coordinates; NaN and infinite ones are left out.
        colors: any number of channels, any dtype; the image has the same.
        cam2world: pose of the camera, OpenCV axes.
        intrinsics: pixels, centres at integers.
        size: (H, W) of the picture.
        radius_px: radius of the disc of each point; 0 is one pixel, 1 is 3x3.
        near: points at this depth or nearer are left out.
        backend: "numba" (CPU), "torch" (any device), or "auto".
        push: how far discs are pushed back, as a fraction of the depth per squared pixel from their centre; surfaces
            whose depth changes by less than it from pixel to pixel come back unchanged at the view they came from.

    Raises:
        ValueError: the numbers of points and colours differ, or the radius is negative.
    """
    if len(points) != len(colors):
        raise ValueError(f"{len(points)} points need as many colours, got {len(colors)}.")
    if radius_px < 0:
        raise ValueError(f"radius_px must not be negative, got {radius_px}.")
    x, y, z, chosen = _pixels(points, cam2world, intrinsics, size, radius_px, near)
    offsets, factors = _footprint(radius_px, push)
    if backend == "auto":
        backend = "numba" if points.device.type == "cpu" else "torch"
    winner = (_nearest_numba if backend == "numba" else _nearest_torch)(x, y, z, offsets, factors, size)
    coverage = winner >= 0
    hit = winner[coverage]
    image = colors.new_zeros(*size, colors.shape[1])
    depth = z.new_zeros(size)
    index = torch.full(size, -1, dtype=torch.int64, device=points.device)
    image[coverage], depth[coverage], index[coverage] = colors[chosen[hit]], z[hit], chosen[hit]
    return Splat(image=image, depth=depth, coverage=coverage, index=index)


def _pixels(
    points: Tensor, cam2world: Tensor, intrinsics: Tensor, size: tuple[int, int], radius_px: int, near: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixel and float32 depth of the points that may be seen, and their indices."""
    cam = transform(inverse(cam2world.to(points)), points)
    chosen = (cam[:, 2] > near).nonzero()[:, 0]
    uv = project(cam[chosen], intrinsics.to(points)) + 0.5
    low, high = -radius_px, uv.new_tensor([size[1] + radius_px, size[0] + radius_px])
    inside = ((uv >= low) & (uv < high)).all(-1) & cam[chosen, 2].isfinite()  # False for NaN
    chosen, pixel = chosen[inside], uv[inside].floor().long()
    return pixel[:, 0], pixel[:, 1], cam[chosen, 2].float(), chosen


def _footprint(radius_px: int, push: float) -> tuple[Tensor, Tensor]:
    """Offsets [K, 2] (dx, dy) of a disc and the factors [K] on the depth there."""
    axis = torch.arange(-radius_px, radius_px + 1)
    offsets = torch.cartesian_prod(axis, axis)
    squared = (offsets**2).sum(-1)
    kept = squared <= (radius_px + 0.5) ** 2
    return offsets[kept], 1 + push * squared[kept].float()


def _nearest_numba(x: Tensor, y: Tensor, z: Tensor, offsets: Tensor, factors: Tensor, size: tuple[int, int]) -> Tensor:
    from worldline.render.zbuffer import nearest_points

    arrays = (tensor.detach().cpu().numpy() for tensor in (x, y, z, offsets, factors))
    return torch.from_numpy(nearest_points(*arrays, *size)).to(x.device)


def _nearest_torch(x: Tensor, y: Tensor, z: Tensor, offsets: Tensor, factors: Tensor, size: tuple[int, int]) -> Tensor:
    empty = torch.iinfo(torch.int64).max
    best = torch.full((size[0] * size[1],), empty, dtype=torch.int64, device=x.device)
    order = torch.arange(len(x), device=x.device)
    for (dx, dy), factor in zip(offsets.tolist(), factors.tolist(), strict=True):
        column, row = x + dx, y + dy
        inside = (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0])
        pushed = z[inside] * torch.tensor(factor, dtype=torch.float32, device=z.device)
        keys = (pushed.view(torch.int32).long() << 32) | order[inside]
        best.scatter_reduce_(0, (row * size[1] + column)[inside], keys, "amin")
    return torch.where(best == empty, -1, best & 0xFFFFFFFF).reshape(size)
