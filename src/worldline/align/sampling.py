"""A stratified subset of pixels of every window: all that the solvers look at until the last full-resolution sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.align.config import Priors
from worldline.align.observation import Observation

_KEY_GRID = (32, 48)  # cells of a key frame, at most


@dataclass(frozen=True, kw_only=True)
class Keyframes:
    """The middle frame of every window on a coarse grid, to find out which windows see the same place.

    Attributes:
        frame: [G] which frame.
        points: [G, h, w, 3] window coordinates, float64.
        weight: [G, h, w] confidence.
        first: (x, y) pixel of the first cell.
        step: pixels between cells.
    """

    frame: Int[Tensor, " G"]
    points: Float[Tensor, "G h w 3"]
    weight: Float[Tensor, "G h w"]
    first: tuple[int, int]
    step: int


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
        scene_flow: [V, n, 3] window coordinates, or None.
        flow_weight: [V, n] confidence where scene flow means something, else 0; or None.
        num_windows: number of windows.
        has_rays: whether some window has ray maps.
        keys: a coarse frame of every window, or None.
    """

    uv: Float[Tensor, "T n 2"]
    window: Int[Tensor, " V"]
    frame: Int[Tensor, " V"]
    points: Float[Tensor, "V n 3"]
    weight: Float[Tensor, "V n"]
    disparity: Float[Tensor, "V n"] | None
    scene_flow: Float[Tensor, "V n 3"] | None = None
    flow_weight: Float[Tensor, "V n"] | None = None
    num_windows: int
    has_rays: bool = False
    keys: Keyframes | None = None

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.uv)


def thin(samples: Samples, count: int) -> Samples:
    """The same views with fewer samples: an evenly spread, shuffled subset."""
    n = samples.uv.shape[1]
    if n <= count:
        return samples
    pick = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count].sort().values
    return replace(
        samples, uv=samples.uv[:, pick], points=samples.points[:, pick], weight=samples.weight[:, pick],
        disparity=None if samples.disparity is None else samples.disparity[:, pick],
        scene_flow=None if samples.scene_flow is None else samples.scene_flow[:, pick],
        flow_weight=None if samples.flow_weight is None else samples.flow_weight[:, pick],
    )  # fmt: skip


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
    store: _Rows | None = None
    keys = _Keys(size, len(observations))
    has_disparity = has_rays = False
    for k in range(len(observations)):
        observation = observations[k]
        if observation.size != tuple(size):
            raise ValueError(f"Window {k} is {list(observation.size)} pixels, but the video is {list(size)}.")
        if observation.frames[0] < 0 or observation.frames[-1] >= num_frames:
            raise ValueError(f"Window {k} speaks of frames {observation.frames}, the video has {num_frames}.")
        if store is None:
            store = _Rows(2 * num_frames, pixel.shape[1], observation.scene_flow is not None)
        store.add(k, observation, pixel, priors)
        keys.add(k, observation, priors)
        has_disparity |= observation.disparity is not None
        has_rays |= observation.ray_direction is not None or observation.ray_cam2world is not None
    assert store is not None
    window, frame = store.index[: store.used].unbind(1)
    order = torch.argsort(frame, stable=True)
    values = store.values[: store.used][order]
    return Samples(
        uv=torch.stack([pixel % size[1], pixel // size[1]], -1).double(),
        window=window[order],
        frame=frame[order],
        points=values[..., :3].contiguous(),
        weight=values[..., 3].contiguous(),
        disparity=values[..., 4].contiguous() if has_disparity else None,
        scene_flow=values[..., 5:8].contiguous() if store.flow else None,
        flow_weight=values[..., 8].contiguous() if store.flow else None,
        num_windows=len(observations),
        has_rays=has_rays,
        keys=keys.done(),
    )


class _Keys:
    """Coarse middle frames, in one block."""

    def __init__(self, size: tuple[int, int], count: int) -> None:
        self.step = max(1, -(-size[0] // _KEY_GRID[0]), -(-size[1] // _KEY_GRID[1]))
        self.first = (((size[1] - 1) % self.step) // 2, ((size[0] - 1) % self.step) // 2)
        rows, cols = (len(range(start, end, self.step)) for start, end in zip(self.first[::-1], size, strict=True))
        self.frame = torch.zeros(count, dtype=torch.long)
        self.values = torch.zeros(count, rows, cols, 4, dtype=torch.float64)

    def add(self, k: int, observation: Observation, priors: Priors) -> None:
        """The middle frame of window k."""
        i = len(observation) // 2
        n = self.frame[k] = observation.frames[i]
        cut = (slice(self.first[1], None, self.step), slice(self.first[0], None, self.step))
        w = observation.confidence[i][cut].cpu().double()
        if priors.moving_mask is not None:
            w = w * ~priors.moving_mask[n][cut]
        p = observation.points[i][cut].cpu().double()
        self.values[k, ..., :3] = torch.where((w > 0)[..., None], p, torch.zeros_like(p))
        self.values[k, ..., 3] = w

    def done(self) -> Keyframes:
        """All of them."""
        return Keyframes(
            frame=self.frame, points=self.values[..., :3].contiguous(), weight=self.values[..., 3].contiguous(),
            first=self.first, step=self.step,
        )  # fmt: skip


class _Rows:
    """Samples of views in one growing block: small tensors kept among large temporary ones would scatter the heap."""

    def __init__(self, views: int, count: int, flow: bool) -> None:
        self.flow = flow  # point, weight, disparity, then scene flow and its weight
        self.values = torch.zeros(views, count, 9 if flow else 5, dtype=torch.float64)
        self.index = torch.zeros(views, 2, dtype=torch.long)
        self.used = 0

    def add(self, k: int, observation: Observation, pixel: Tensor, priors: Priors) -> None:
        """Append the views of one window."""
        index = torch.tensor(observation.frames)
        end = self.used + len(index)
        if end > len(self.values):
            self.values = torch.cat([self.values, torch.zeros_like(self.values)])
            self.index = torch.cat([self.index, torch.zeros_like(self.index)])
            self.add(k, observation, pixel, priors)
            return
        rows, self.used = slice(self.used, end), end
        self.index[rows, 0], self.index[rows, 1] = k, index
        pick = pixel[index].to(observation.points.device)
        w = observation.confidence.flatten(1).gather(1, pick).cpu().double()
        if priors.moving_mask is not None:
            w = w * ~priors.moving_mask[index].flatten(1).gather(1, pixel[index])
        p = observation.points.flatten(1, 2).gather(1, pick[..., None].expand(-1, -1, 3)).cpu().double()
        self.values[rows, :, :3] = torch.where((w > 0)[..., None], p, torch.zeros_like(p))
        self.values[rows, :, 3] = w
        if observation.disparity is not None:
            d = observation.disparity.flatten(1).gather(1, pick).cpu().double().nan_to_num(0.0)
            self.values[rows, :, 4] = d
        if self.flow and observation.scene_flow is not None:
            v = observation.scene_flow.flatten(1, 2).gather(1, pick[..., None].expand(-1, -1, 3)).cpu().double()
            valid = observation.flow_valid
            asked = w if valid is None else w * valid.flatten(1).gather(1, pick).cpu()
            asked = asked * (index < len(pixel) - 1)[:, None]
            self.values[rows, :, 5:8] = torch.where((asked > 0)[..., None], v, torch.zeros_like(v))
            self.values[rows, :, 8] = asked
