"""The unknowns of the joint refinement and where each of them sits in the parameter vector."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldline.align.rotations import cayley
from worldline.align.sampling import Samples
from worldline.align.synchronize import perturb
from worldline.geometry.pose import Similarity


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that is estimated; world coordinates, float64.

    Attributes:
        rotation: [C, 3, 3] camera to world (C = T, or 1 for a static camera).
        centre: [C, 3].
        log_focal: [1] or [C], focal in pixels.
        windows: [G] similarities window -> world.
        log_depth: [T, n] of the samples.
        disparity: [G, 2] the two coefficients between disparity and inverse depth (see the terms), or None.
        trajectory: [G] similarity from the ray cameras of each window to the world, or None.
    """

    rotation: Float[Tensor, "C 3 3"]
    centre: Float[Tensor, "C 3"]
    log_focal: Float[Tensor, " F"]
    windows: Similarity
    log_depth: Float[Tensor, "T n"]
    disparity: Float[Tensor, "G 2"] | None = None
    trajectory: Similarity | None = None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Indices of the parameters: frames and windows interleaved along time so that the system is banded.

    Attributes:
        camera: [C, 6] rotation (on the right), centre.
        focal: [C] the focal each camera uses.
        window: [G, 7] rotation, translation, log scale (see synchronize.perturb).
        disparity: [G, 2].
        trajectory: [G, 7].
        size: number of parameters.
        border: how many at the end couple with everything.
        bandwidth: for schur.Layout, None = dense.
    """

    camera: Int[Tensor, "C 6"]
    focal: Int[Tensor, " C"]
    window: Int[Tensor, "G 7"]
    disparity: Int[Tensor, "G 2"]
    trajectory: Int[Tensor, "G 7"]
    size: int
    border: int
    bandwidth: int | None


def make_columns(
    samples: Samples, cameras: int, own_focal: bool, dense_below: int = 700, far: Int[Tensor, " n"] | None = None
) -> Columns:
    """Order parameters by time; windows of far frames, those in `far` and a shared focal go to the border."""
    G = samples.num_windows
    first = torch.full((G,), 10**9).scatter_reduce_(0, samples.window, samples.frame, "amin")
    last = torch.full((G,), -1).scatter_reduce_(0, samples.window, samples.frame, "amax")
    count = torch.bincount(samples.window, minlength=G)
    loop = (last - first + 1) > 3 * count.clamp_min(8)
    if far is not None:
        loop[far] = True
    items = [(float(c), 0, c) for c in range(cameras)] if cameras > 1 else []
    items += [((float(first[k]) + float(last[k])) / 2, 1, k) for k in range(G) if not loop[k]]
    items.sort()
    border = [(0.0, 1, k) for k in range(G) if bool(loop[k])] + ([(0.0, 0, 0)] if cameras == 1 else [])
    camera, focal = torch.zeros(cameras, 6, dtype=torch.long), torch.zeros(cameras, dtype=torch.long)
    window, disparity, trajectory = (torch.zeros(G, w, dtype=torch.long) for w in (7, 2, 7))
    position = inner = 0
    for number, (_, kind, index) in enumerate(items + border):
        inner = position if number == len(items) else inner
        if kind == 0:
            camera[index] = position + torch.arange(6)
            focal[index] = position + 6
            position += 7 if own_focal else 6
        else:
            window[index] = position + torch.arange(7)
            disparity[index] = position + 7 + torch.arange(2)
            trajectory[index] = position + 9 + torch.arange(7)
            position += 16
    inner = position if not border else inner
    if not own_focal:
        focal[:] = position
        position += 1
    spread = _bandwidth(samples, camera, window, loop, cameras, inner)
    banded = position > dense_below and spread < inner // 2
    return Columns(
        camera=camera, focal=focal, window=window, disparity=disparity, trajectory=trajectory, size=position,
        border=position - inner, bandwidth=spread if banded else None,
    )  # fmt: skip


def _bandwidth(samples: Samples, camera: Tensor, window: Tensor, loop: Tensor, cameras: int, inner: int) -> int:
    """Largest distance between parameters that a frame couples: its windows, its and its neighbours' cameras."""
    if cameras == 1:
        return inner
    low, high = camera[:, 0].clone(), camera[:, 5] + 2
    usable = ~loop[samples.window]
    k, n = samples.window[usable], samples.frame[usable]
    low.scatter_reduce_(0, n, window[k, 0], "amin")
    high.scatter_reduce_(0, n, window[k, 0] + 16, "amax")
    high[:-1] = torch.maximum(high[:-1], camera[1:, 5] + 2)  # optical flow: the next camera too
    smooth = camera[2:, 5] - camera[:-2, 0] + 2 if cameras > 2 else torch.zeros(1, dtype=torch.long)
    return int(torch.maximum((high - low).max(), smooth.max())) + 1


def retract(state: State, columns: Columns, dx: Float[Tensor, " D"], depth_step: Float[Tensor, "T n"]) -> State:
    """Apply a parameter step; log quantities are limited so that one bad step cannot overflow."""
    camera = dx[columns.camera]
    focal = dx[columns.focal] if len(state.log_focal) > 1 else dx[columns.focal[:1]]
    moved = replace(
        state,
        rotation=state.rotation @ cayley(camera[:, :3]),
        centre=state.centre + camera[:, 3:],
        log_focal=state.log_focal + focal.clamp(-0.3, 0.3),
        windows=perturb(state.windows, dx[columns.window]),
        log_depth=state.log_depth + depth_step.clamp(-0.5, 0.5),
    )
    if state.disparity is not None:
        moved = replace(moved, disparity=state.disparity + dx[columns.disparity])
    if state.trajectory is not None:
        moved = replace(moved, trajectory=perturb(state.trajectory, dx[columns.trajectory]))
    return moved


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Intermediate values of one state on all samples, shared by the terms.

    Attributes:
        slot: [V] camera of each view.
        ray: [T, n, 3] camera rays with z = 1.
        depth: [T, n].
        relative: [V, n, 3] window points in world axes from the window's origin: Y - t.
        q: [V, n, 3] window points in the camera of their frame.
        residual: [V, n, 3] q - depth * ray.
    """

    slot: Int[Tensor, " V"]
    ray: Float[Tensor, "T n 3"]
    depth: Float[Tensor, "T n"]
    relative: Float[Tensor, "V n 3"]
    q: Float[Tensor, "V n 3"]
    residual: Float[Tensor, "V n 3"]


def make_geometry(state: State, samples: Samples, xy: Float[Tensor, "T n 2"]) -> Geometry:
    """Window points in the cameras, and how far they are from the fused depth."""
    k, n = samples.window, samples.frame
    slot = n if len(state.centre) > 1 else torch.zeros_like(n)
    focal = state.log_focal.exp()[:, None, None]
    ray = torch.cat([xy / focal, torch.ones_like(xy[..., :1])], -1)
    depth = state.log_depth.exp()
    turn = state.windows.scale[k][:, None, None] * state.windows.rotation[k]
    relative = samples.points @ turn.mT
    q = (relative + (state.windows.translation[k] - state.centre[slot])[:, None]) @ state.rotation[slot]
    return Geometry(slot=slot, ray=ray, depth=depth, relative=relative, q=q, residual=q - (depth[..., None] * ray)[n])


def frames_with_samples(samples: Samples) -> Bool[Tensor, "T n"]:
    """Samples that at least one window speaks about."""
    seen = torch.zeros_like(samples.uv[..., 0]).index_add_(0, samples.frame, samples.weight)
    return seen > 0
