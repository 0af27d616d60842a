"""The points and the camera path of a scene seen from above: x to the right, z (the first view) upwards."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from worldline.geometry.pointmap import scene_depth
from worldline.render.colors import colormap, to_uint8
from worldline.scene import Cameras, Scene4D

GROUND, TRUTH_INK = (36, 37, 42), (190, 190, 196)
_SMOOTH = 2  # drawn this much larger and shrunk, for smooth lines
_FRUSTA = 9


@dataclass(frozen=True)
class _Map:
    """World -> pixels: `centre` (x, z) is in the middle, `scale` pixels per unit, `side` pixels in all."""

    centre: np.ndarray
    scale: float
    side: int

    def place(self, world: np.ndarray) -> np.ndarray:
        """[N, 3] -> [N, 2] (x, y) in pixels."""
        ground = (world[:, [0, 2]] - self.centre) * self.scale
        return ground * [1, -1] + self.side / 2


def draw_from_above(scene: Scene4D, truth: Scene4D | None, side: int, limit: int) -> Image.Image:
    """A square picture of at most `limit` points and the camera path with frusta, first blue, last red.

    The path of the truth, scaled to the median depth of the scene, is a grey line.

    Raises:
        ValueError: the scene has no cameras.
    """
    if scene.cameras is None:
        raise ValueError("The picture needs cameras, and this scene has none.")
    points, colors = _points(scene, limit)
    path = _centres(scene.cameras)
    frame = _fit(points, path, side * _SMOOTH)
    canvas = Image.fromarray(_paint(points, colors, frame))
    draw = ImageDraw.Draw(canvas)
    if truth is not None and truth.cameras is not None:
        true_path = frame.place(_centres(truth.cameras) * _relative_scale(scene, truth))
        draw.line([tuple(place) for place in true_path.tolist()], TRUTH_INK, 5 * _SMOOTH, joint="curve")
    tints = [tuple(tint) for tint in to_uint8(colormap(torch.linspace(0, 1, len(scene)), "time")).tolist()]
    places = [tuple(place) for place in frame.place(path).tolist()]
    for index in range(len(places) - 1):
        draw.line([places[index], places[index + 1]], tints[index], 2 * _SMOOTH)
    for index in sorted(set(np.linspace(0, len(scene) - 1, _FRUSTA).round().astype(int).tolist())):
        _draw_frustum(draw, frame, scene.cameras, index, tints[index])
    return canvas.resize((side, side), Image.Resampling.BOX)


def _centres(cameras: Cameras) -> np.ndarray:
    return cameras.cam2world[:, :3, 3].detach().cpu().double().numpy()


def _points(scene: Scene4D, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] and colours [N, 3], the highest last; a ceiling far above the cameras is left out."""
    assert scene.cameras is not None
    flat = scene.valid.flatten().nonzero()[:, 0]
    flat = flat[:: max(1, len(flat) // limit)]
    points = scene.points.reshape(-1, 3)[flat].detach().cpu().double().numpy()
    colors = to_uint8(scene.video.rgb().reshape(-1, 3)[flat]).cpu().numpy()
    kept = np.isfinite(points).all(-1)
    points, colors = points[kept], colors[kept]
    if len(points):
        span = float(np.ptp(np.quantile(points[:, 1], [0.02, 0.98])))
        below = points[:, 1] > _centres(scene.cameras)[:, 1].min() - 0.25 * span  # y points down
        if below.mean() > 0.2:
            points, colors = points[below], colors[below]
    order = np.argsort(-points[:, 1], kind="stable")
    return points[order], colors[order]


def _fit(points: np.ndarray, path: np.ndarray, side: int) -> _Map:
    """The map that shows nearly all points and every camera."""
    ground, cameras = points[:, [0, 2]], path[:, [0, 2]]
    low, high = cameras.min(0), cameras.max(0)
    if len(ground):
        low = np.minimum(low, np.quantile(ground, 0.03, axis=0))
        high = np.maximum(high, np.quantile(ground, 0.88, axis=0))
    span = max(float((high - low).max()), 1e-9) * 1.15
    return _Map((low + high) / 2, side / span, side)


def _paint(points: np.ndarray, colors: np.ndarray, frame: _Map) -> np.ndarray:
    """Points as small squares, higher over lower, a little dark so that the cameras stand out."""
    canvas = np.full((frame.side, frame.side, 3), GROUND, np.uint8)
    pixel = np.floor(frame.place(points)).astype(np.int64)
    for dx, dy in sorted(itertools.product(range(-1, 3), repeat=2), key=lambda d: -abs(d[0]) - abs(d[1])):
        column, row = pixel[:, 0] + dx, pixel[:, 1] + dy
        inside = (column >= 0) & (column < frame.side) & (row >= 0) & (row < frame.side)
        canvas[row[inside], column[inside]] = (0.75 * colors[inside]).astype(np.uint8)
    return canvas


def _draw_frustum(draw: ImageDraw.ImageDraw, frame: _Map, cameras: Cameras, index: int, tint: tuple[int, ...]) -> None:
    """The horizontal opening of one camera as a triangle."""
    pose = cameras.cam2world[index].detach().cpu().double().numpy()
    focal = float(cameras.intrinsics[index, 0, 0])
    reach = 0.07 * frame.side / frame.scale
    half = cameras.size[1] / 2 / focal
    sides = [
        pose[:3, 3] + pose[:3, :3] @ (np.array([sign * half, 0, 1]) / np.hypot(1, half) * reach) for sign in (-1, 1)
    ]
    corners = [tuple(place) for place in frame.place(np.stack([pose[:3, 3], *sides])).tolist()]
    draw.line([*corners, corners[0]], tint, 2 * _SMOOTH, joint="curve")


def _relative_scale(scene: Scene4D, truth: Scene4D) -> float:
    """Median depth of the scene over that of the truth; both worlds are that of the first camera."""
    depths = [scene_depth(item)[item.valid] for item in (scene, truth)]
    if not all(len(depth) for depth in depths):
        return 1.0
    ours, theirs = (float(depth.median()) for depth in depths)
    return ours / theirs if theirs > 0 else 1.0
