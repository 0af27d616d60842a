"""Sparse tracks onto the pixels that see them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldline.data.clips import PointTracks
from worldline.geometry import camera, pose

RTOL = 0.05  # a track whose depth is further from the surface's is not what the pixel sees


def pixels(
    uv: Float[Tensor, "N 2"], size: tuple[int, int]
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Bool[Tensor, " N"]]:
    """(row, column, inside) of the pixels that positions fall into; (0, 0) outside the image."""
    nearest = uv.round()
    inside = uv.isfinite().all(-1) & (nearest >= 0).all(-1) & (nearest[:, 0] < size[1]) & (nearest[:, 1] < size[0])
    column, row = torch.where(inside[:, None], nearest, torch.zeros_like(nearest)).long().unbind(-1)
    return row, column, inside


def splat_depth(
    tracks: PointTracks, intrinsics: Float[Tensor, "T 3 3"], cam2world: Float[Tensor, "T 4 4"], size: tuple[int, int]
) -> Float[Tensor, "T H W"]:
    """z-depth at the pixels that see a track, the nearest one of several; 0 elsewhere.

    The scene's point lies on the ray of the pixel's centre, up to half a pixel beside the track's.
    """
    depth = torch.full((len(tracks.points), size[0] * size[1]), torch.inf)
    for t in range(len(depth)):
        local = pose.transform(pose.inverse(cam2world[t].double()), tracks.points[t].double())
        row, column, inside = pixels(camera.project(local, intrinsics[t].double()), size)
        inside &= tracks.visible[t] & (local[:, 2] > 0)
        where = (row * size[1] + column)[inside]
        depth[t].scatter_reduce_(0, where, local[inside, 2].float(), "amin")
    depth = depth.reshape(-1, *size)
    return torch.where(depth.isfinite(), depth, torch.zeros_like(depth))


def splat_flow(
    tracks: PointTracks,
    depth: Float[Tensor, "T H W"],
    intrinsics: Float[Tensor, "T 3 3"],
    cam2world: Float[Tensor, "T 4 4"],
) -> tuple[Float[Tensor, "T H W 3"], Bool[Tensor, "T H W"]]:
    """World scene flow at the pixels that see a track whose next position is known, and where that is.

    Of several tracks in a pixel the nearest to the camera counts; one whose depth is not the pixel's (within RTOL) does
    not.

    Args:
        tracks: in the frame of the first camera.
        depth: z-depth of the pixels.
        intrinsics: pixels.
        cam2world: relative to the first camera.
    """
    size = (depth.shape[1], depth.shape[2])
    flow, valid = torch.zeros(*depth.shape, 3), torch.zeros(depth.shape, dtype=torch.bool)
    for t in range(len(depth) - 1):
        local = pose.transform(pose.inverse(cam2world[t].double()), tracks.points[t].double())
        row, column, inside = pixels(camera.project(local, intrinsics[t].double()), size)
        good = inside & tracks.visible[t] & tracks.known[t] & tracks.known[t + 1] & (local[:, 2] > 0)
        good &= (depth[t][row, column] - local[:, 2]).abs() <= RTOL * local[:, 2]
        chosen = good.nonzero()[:, 0]
        chosen = chosen[local[chosen, 2].argsort(descending=True)]  # the nearest is written last
        last = torch.full((size[0] * size[1],), -1, dtype=torch.long)
        last.scatter_reduce_(0, (row * size[1] + column)[chosen], torch.arange(len(chosen)), "amax")
        filled = last >= 0
        winner = chosen[last[filled]]
        flow[t].view(-1, 3)[filled] = tracks.points[t + 1][winner] - tracks.points[t][winner]
        valid[t].view(-1)[filled] = True
    return flow, valid
