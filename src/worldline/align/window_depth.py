"""Depth of every frame from overlapping windows, without aligning them: what a depth prior needs, and no more.

Each window's own cameras are found from its points (`resection`), under the focal length these show; the points' depths
in them are the window's depth maps. Neighbouring windows are brought to one scale by the median log ratio of the frames
they share, and averaged there in log depth. Windows are looked at once, in order, and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.align.initialize import LEAST_CONTRAST, USUAL_FOCAL
from worldline.align.observation import Observation
from worldline.align.resection import solve_poses, sweep_focal
from worldline.geometry.camera import pixel_grid
from worldline.io.arena import Arena

SAMPLES = 400  # pixels of a frame that its camera is found from
SWEPT = 8  # frames that the focal length is searched on
FOCAL_WINDOWS = 8  # windows, the first ones, that these frames are taken from
FOCAL_RANGE = (0.35, 4.0)  # in units of the longer side
LEAST = 16  # usable pixels without which a frame has no camera
RATIOS = 2000  # pixels of a frame that two windows are compared on


def frame_depths(windows: Iterable[Observation], count: int, arena: Arena) -> Float[Tensor, "T H W"]:
    """z-depth of every frame, of one scale as far as windows overlap; NaN where no window says anything.

    Args:
        windows: what a system says, in the order of time, all of one size.
        count: frames of the video.
        arena: where the maps live.

    Raises:
        ValueError: there are no windows.
    """
    stream = iter(windows)
    first = list(islice(stream, FOCAL_WINDOWS))
    if not first:
        raise ValueError("There are no windows to take depth from.")
    focal = common_focal(first)
    maps = _Maps(count, first[0].size, arena)
    for window in chain(_emptied(first), stream):
        maps.add(window, camera_depth(window, focal))
    return maps.finish()


def _emptied(windows: list[Observation]) -> Iterator[Observation]:
    """The windows, each forgotten by the list as it is handed out."""
    while windows:
        yield windows.pop(0)


def common_focal(windows: list[Observation]) -> float:
    """The focal length in pixels under which windows' points fall on their pixels best; a usual one where none does."""
    longer = max(windows[0].size)
    each = max(1, SWEPT // len(windows))
    views = [_samples(window, _spread(len(window), each)) for window in windows]
    xy, points, weight = (torch.cat(values) for values in zip(*views, strict=True))
    enough = (weight > 0).sum(1) >= LEAST
    if not bool(enough.any()):
        return USUAL_FOCAL * longer
    start = torch.eye(3, dtype=torch.float64).expand(int(enough.sum()), 3, 3)
    low, high = FOCAL_RANGE[0] * longer, FOCAL_RANGE[1] * longer
    focal, contrast = sweep_focal(xy[enough], points[enough], weight[enough], start, (low, high))
    sure = contrast >= LEAST_CONTRAST and 1.02 * low < focal < 0.98 * high
    return focal if sure else USUAL_FOCAL * longer


def _spread(count: int, most: int) -> Tensor:
    """At most `most` of the indices below `count`, evenly spread, the later end where only one is asked for."""
    return (torch.linspace(0, count, most + 1)[1:] - 1).clamp_min(0).long().unique()


def camera_depth(window: Observation, focal_px: float) -> Float[Tensor, "t H W"]:
    """z-depth of a window's points in cameras found from them; NaN behind these and where the window says nothing."""
    everyone = torch.arange(len(window))
    xy, points, weight = _samples(window, everyone)
    focal = torch.full((len(window),), focal_px, dtype=torch.float64)
    start = torch.eye(3, dtype=torch.float64).expand(len(window), 3, 3)
    rotation, centre, error = solve_poses(xy, points, weight, focal, start)
    found = (error.isfinite() & (weight > 0)).sum(1) >= LEAST
    axis = rotation[:, None, None, :, 2].to(window.points)
    depth = ((window.points - centre[:, None, None].to(window.points)) * axis).sum(-1)
    known = (window.confidence > 0) & (depth > 0) & depth.isfinite() & found[:, None, None]
    return depth.where(known, torch.nan)


def _samples(window: Observation, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [n, N, 2] from the centre, points [n, N, 3] and weights [n, N] of a grid of pixels, float64."""
    height, width = window.size
    step = max(1, int((height * width / SAMPLES) ** 0.5))
    rows, columns = slice(step // 2, None, step), slice(step // 2, None, step)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
    xy = pixel_grid((height, width))[rows, columns].double().flatten(0, 1) - centre
    points = window.points[frames][:, rows, columns].double().flatten(1, 2)
    weight = window.confidence[frames][:, rows, columns].double().flatten(1, 2)
    return xy.expand(len(frames), -1, -1), points.nan_to_num(), weight


class _Maps:
    """Sums of log depth while windows are added."""

    def __init__(self, count: int, size: tuple[int, int], arena: Arena) -> None:
        self._total, self._weight = (torch.from_numpy(arena.zeros((count, *size), "float32")) for _ in range(2))
        self._arena = arena

    def add(self, window: Observation, depth: Float[Tensor, "t H W"]) -> None:
        """Add a window's depth, brought to the scale of what is there already."""
        frames = list(window.frames)
        logs, known = depth.log().nan_to_num(), depth.isfinite()
        logs = logs + self._shift(frames, logs, known)
        weight = known * window.confidence
        for n, t in enumerate(frames):
            self._total[t] += weight[n] * logs[n]
            self._weight[t] += weight[n]
        self._arena.release()

    def _shift(self, frames: list[int], logs: Tensor, known: Tensor) -> Tensor:
        """Median over shared frames of the log ratio; median depth 1 for a window that shares none."""
        ratios = []
        for n, t in enumerate(frames):
            both = known[n] & (self._weight[t] > 0)
            difference = (self._total[t] / self._weight[t] - logs[n])[both]
            if len(difference):
                ratios.append(difference[:: max(1, len(difference) // RATIOS)].median())
        if ratios:
            return torch.stack(ratios).median()
        return -logs[known].median() if bool(known.any()) else torch.zeros(())

    def finish(self) -> Float[Tensor, "T H W"]:
        """The depth."""
        for total, weight in zip(self._total, self._weight, strict=True):
            total.copy_((total / weight).exp().where(weight > 0, torch.nan))
        self._arena.release()
        return self._total
