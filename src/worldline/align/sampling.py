"""A stratified subset of pixels of every window: all that the solvers look at until the last full-resolution sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.align.config import Priors
from worldline.align.observation import Observation


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The same n pixels of a frame in every window that sees it. A "view" is one frame in one window.

    Attributes:
        uv: [T, n, 2] pixel coordinates (x, y) of the samples of each frame.
        window: [V] window of each view.
        frame: [V] frame of each view, ascending.
        points: [V, n, 3] window coordinates, float64.
        weight: [V, n] confidence, 0 where masked; float64.
        disparity: [V, n] or None (0 where a window has none).
        num_windows: number of windows.
    """

    uv: Float[Tensor, "T n 2"]
    window: Int[Tensor, " V"]
    frame: Int[Tensor, " V"]
    points: Float[Tensor, "V n 3"]
    weight: Float[Tensor, "V n"]
    disparity: Float[Tensor, "V n"] | None
    num_windows: int

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.uv)


def stratified_pixels(size: tuple[int, int], count: int, frames: int, seed: int) -> Int[Tensor, "T n"]:
    """Flat pixel indices of each frame: one random pixel per cell of a grid with about `count` cells."""
    height, width = size
    if height * width <= count:
        return torch.arange(height * width).expand(frames, -1)
    rows = min(height, max(1, round((count * height / width) ** 0.5)))
    cols = min(width, max(1, round(count / rows)))
    generator = torch.Generator().manual_seed(seed)
    jitter = torch.rand(2, frames, rows, cols, generator=generator)
    y = ((torch.arange(rows)[:, None] + jitter[0]) * height / rows).long().clamp_(max=height - 1)
    x = ((torch.arange(cols) + jitter[1]) * width / cols).long().clamp_(max=width - 1)
    return (y * width + x).flatten(1)


def gather(
    observations: Sequence[Observation], num_frames: int, size: tuple[int, int], priors: Priors, count: int, seed: int
) -> Samples:
    """Read every window once and keep its samples; memory is independent of the resolution.

    Raises:
        ValueError: no windows, a window of another size, or a frame outside the video.
    """
    if len(observations) == 0:
        raise ValueError("There is nothing to align: no observations were given.")
    pixel = stratified_pixels(size, count, num_frames, seed)
    window, frame, points, weight, disparity = [], [], [], [], []
    for k in range(len(observations)):
        observation = observations[k]
        if observation.size != tuple(size):
            raise ValueError(f"Window {k} is {list(observation.size)} pixels, but the video is {list(size)}.")
        if observation.frames[0] < 0 or observation.frames[-1] >= num_frames:
            raise ValueError(f"Window {k} speaks of frames {observation.frames}, the video has {num_frames}.")
        index = torch.tensor(observation.frames)
        pick = pixel[index].to(observation.points.device)
        w = observation.confidence.flatten(1).gather(1, pick).cpu().double()
        if priors.moving_mask is not None:
            w = w * ~priors.moving_mask[index].flatten(1).gather(1, pixel[index])
        expanded = pick[..., None].expand(-1, -1, 3)
        p = observation.points.flatten(1, 2).gather(1, expanded).cpu().double()
        window.append(torch.full_like(index, k))
        frame.append(index)
        weight.append(w)
        points.append(torch.where((w > 0)[..., None], p, torch.zeros_like(p)))
        d = observation.disparity
        disparity.append(torch.zeros_like(w) if d is None else d.flatten(1).gather(1, pick).cpu().double())
    found = any(bool((d > 0).any()) for d in disparity)
    uv = torch.stack([pixel % size[1], pixel // size[1]], -1).double()
    order = torch.argsort(torch.cat(frame), stable=True)
    return Samples(
        uv=uv,
        window=torch.cat(window)[order],
        frame=torch.cat(frame)[order],
        points=torch.cat(points)[order],
        weight=torch.cat(weight)[order],
        disparity=torch.cat(disparity)[order].nan_to_num(0.0) if found else None,
        num_windows=len(observations),
    )
