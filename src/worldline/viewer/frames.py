"""What the viewer shows at one time: coloured points, motion lines, the picture; read lazily, in viewer coordinates.

Viewer coordinates are the world's, centred on the scene and divided by its typical depth: browsers and graphics cards
keep their precision, and every scene needs the same camera, point and frustum sizes whatever its scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldline.geometry.pointmap import depth_edges, depth_of
from worldline.io.store import StoredScene
from worldline.render.colors import colormap, depth_colors, depth_range, motion_colors, motion_scale, to_uint8
from worldline.scene import Cameras, Provenance, Scene4D, Tracks4D

ColorBy = Literal["image", "depth", "motion", "confidence"]
_SAMPLED = 5  # frames looked at to choose ranges of colours
TRAIL = 8  # frames


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the user chose.

    Attributes:
        color_by: what the colours mean.
        max_points: points per frame at most; always the same pixels, so that nothing flickers.
        min_confidence: points below it are left out.
        hide_edges: leave out points at depth steps, which often hang in the air.
        max_lines: motion lines at most.
    """

    color_by: ColorBy = "image"
    max_points: int = 120_000
    min_confidence: float = 0.0
    hide_edges: bool = False
    max_lines: int = 500


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Points [N, 3] in viewer coordinates and their RGB [N, 3]."""

    points: Float[np.ndarray, "N 3"]
    colors: UInt8[np.ndarray, "N 3"]


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Line segments [N, 2, 3] in viewer coordinates and the RGB [N, 2, 3] of their ends."""

    points: Float[np.ndarray, "N 2 3"]
    colors: UInt8[np.ndarray, "N 2 3"]


class Frames(ABC):
    """The times of a scene or of tracks, each ready to be shown.

    Attributes:
        size: (H, W).
        count: number of times.
        cameras: all of them, or None.
        provenance: how it was made.
        scale: "metric" or "relative".
        colors: what the points can be coloured by.
        has_motion: whether `lines` gives any.
    """

    size: tuple[int, int]
    count: int
    cameras: Cameras | None
    provenance: Provenance
    scale: str
    fps: float
    colors: tuple[ColorBy, ...]
    has_motion: bool

    @abstractmethod
    def cloud(self, time: int, look: Look) -> Cloud:
        """The points at one time."""

    @abstractmethod
    def lines(self, time: int, look: Look) -> Lines:
        """How they move."""

    @abstractmethod
    def image(self, time: int) -> UInt8[np.ndarray, "H W 3"]:
        """What the camera saw."""

    def __init__(self, source: StoredScene | Scene4D | Tracks4D) -> None:
        """Look at a few frames to find the centre, the unit and the ranges of the colours."""
        self._source = source
        timestamps = source.video.timestamps if isinstance(source, Scene4D) else source.timestamps
        self.count, self.cameras, self.provenance = len(timestamps), source.cameras, source.provenance
        self.scale = source.scale
        span = float(timestamps[-1] - timestamps[0])
        self.fps = (self.count - 1) / span if span > 0 else 10.0
        self.size = (source.points.shape[1], source.points.shape[2]) if isinstance(source, Tracks4D) else source.size
        self._order = np.random.default_rng(0).permutation(self.size[0] * self.size[1])
        self._measure()

    def _measure(self) -> None:
        """Centre and unit: middle of the first frame's points and their median distance from its camera."""
        points, seen = self._points(0), self._seen(0)
        visible = points[seen & torch.isfinite(points).all(-1)].double()
        eye = torch.zeros(3, dtype=torch.float64) if self.cameras is None else self.cameras.cam2world[0, :3, 3].double()
        self.centre = np.asarray((visible.median(0).values if len(visible) else eye).numpy())
        distance = float((visible - eye).norm(dim=-1).median()) if len(visible) else 1.0
        self.unit = distance / 3 if distance > 0 else 1.0

    def place(self, world: np.ndarray) -> np.ndarray:
        """World -> viewer coordinates."""
        return (world - self.centre) / self.unit

    def _points(self, time: int) -> Tensor:
        return torch.from_numpy(self._read("points", time))

    @abstractmethod
    def _seen(self, time: int) -> Tensor:
        """[H, W] which points mean something."""

    @abstractmethod
    def _read(self, name: str, time: int) -> np.ndarray:
        """One frame of a field."""

    def _pick(self, mask: Tensor, limit: int) -> np.ndarray:
        """Flat indices of at most `limit` pixels of the mask, in a fixed random order."""
        flat = mask.numpy().reshape(-1)
        return self._order[flat[self._order]][:limit]


class SceneFrames(Frames):
    """A Scene4D, in memory or on disk: at each time the points its camera saw then."""

    def __init__(self, scene: StoredScene | Scene4D) -> None:
        self._stored = scene if isinstance(scene, StoredScene) else None
        self._scene = None if isinstance(scene, StoredScene) else scene
        self._fields = self._names(scene)
        super().__init__(scene)
        self.has_motion = "scene_flow" in self._fields and self.count > 1
        self.colors = ("image", "depth", *(("motion",) if self.has_motion else ()),
                       *(("confidence",) if "confidence" in self._fields else ()))  # fmt: skip
        self._choose_ranges()

    @staticmethod
    def _names(scene: StoredScene | Scene4D) -> tuple[str, ...]:
        if isinstance(scene, StoredScene):
            return scene.fields
        return tuple(name for name in ("scene_flow", "confidence") if getattr(scene, name) is not None)

    def _read(self, name: str, time: int) -> np.ndarray:
        if self._stored is not None:
            return self._stored.read(name, time)
        assert self._scene is not None
        field = self._scene.video.frames if name == "rgb" else getattr(self._scene, name)
        return field[time].detach().cpu().numpy()

    def _seen(self, time: int) -> Tensor:
        return torch.from_numpy(self._read("valid", time)) & torch.isfinite(self._points(time)).all(-1)

    def _depth(self, time: int) -> Tensor:
        pose = torch.eye(4) if self.cameras is None else self.cameras.cam2world[time]
        return depth_of(self._points(time)[None], pose[None].to(torch.float32))[0]

    def _motion(self, time: int) -> tuple[Tensor, Tensor]:
        """World scene flow [H, W, 3] and where it means something."""
        flow, valid = (torch.from_numpy(self._read(name, time)) for name in ("scene_flow", "flow_valid"))
        return flow.float(), valid & torch.isfinite(flow).all(-1)

    def _choose_ranges(self) -> None:
        times = sorted(set(np.linspace(0, self.count - 1, _SAMPLED).round().astype(int).tolist()))
        depth, seen = (torch.stack([pick(time) for time in times]) for pick in (self._depth, self._seen))
        self._depth_range = depth_range(depth, seen)
        self._motion_scale = 1.0
        if self.has_motion:
            flows, valid = (torch.stack(items) for items in zip(*map(self._motion, times), strict=True))
            self._motion_scale = motion_scale(flows, valid, 0.006 * self.unit)

    def image(self, time: int) -> UInt8[np.ndarray, "H W 3"]:
        """See Frames."""
        rgb = self._read("rgb", time)
        return rgb if rgb.dtype == np.uint8 else (rgb.clip(0, 1) * 255).round().astype(np.uint8)

    def cloud(self, time: int, look: Look) -> Cloud:
        """See Frames."""
        mask = self._seen(time)
        if look.min_confidence > 0 and "confidence" in self._fields:
            mask &= torch.from_numpy(self._read("confidence", time)) >= look.min_confidence
        if look.hide_edges:
            mask &= ~depth_edges(self._depth(time), 0.1)
        picked = self._pick(mask, look.max_points)
        points = self._points(time).reshape(-1, 3).numpy()[picked]
        return Cloud(points=self.place(points).astype(np.float32), colors=self._rgb(time, look).reshape(-1, 3)[picked])

    def _rgb(self, time: int, look: Look) -> np.ndarray:
        """[H, W, 3] colours by what the user chose."""
        if look.color_by == "depth":
            return to_uint8(depth_colors(self._depth(time), self._seen(time), self._depth_range)).numpy()
        if look.color_by == "confidence" and "confidence" in self._fields:
            confidence = torch.from_numpy(self._read("confidence", time)).float()
            return to_uint8(colormap(confidence, "confidence")).numpy()
        if look.color_by == "motion" and self.has_motion:
            flow, valid = self._motion(time)
            turned = flow if self.cameras is None else flow @ self.cameras.cam2world[time, :3, :3].to(flow)
            return to_uint8(motion_colors(turned, valid, self._motion_scale)).numpy()
        return self.image(time)

    def lines(self, time: int, look: Look) -> Lines:
        """Scene flow of the points that move visibly."""
        if not self.has_motion:
            return _no_lines()
        flow, valid = self._motion(time)
        moving = valid & self._seen(time) & (flow.norm(dim=-1) > 0.1 * self._motion_scale)
        picked = self._pick(moving, look.max_lines)
        start = self._points(time).reshape(-1, 3).numpy()[picked]
        ends = np.stack([start, start + flow.reshape(-1, 3).numpy()[picked]], axis=1)
        colors = self._rgb(time, Look(color_by="motion")).reshape(-1, 3)[picked]
        return Lines(points=self.place(ends).astype(np.float32), colors=np.repeat(colors[:, None], 2, axis=1))


class TrackFrames(Frames):
    """A Tracks4D, in memory or on disk: at each time where the points of the reference frame are."""

    colors = ("image",)

    def __init__(self, tracks: StoredScene | Tracks4D) -> None:
        stored = tracks if isinstance(tracks, StoredScene) else None
        self._stored, self._tracks = stored, None if isinstance(tracks, StoredScene) else tracks
        colors = torch.from_numpy(stored.read("colors", 0)) if stored else to_uint8(tracks.colors.float())  # type: ignore[union-attr]
        self._image = colors.cpu().numpy()
        super().__init__(tracks)
        self.has_motion = self.count > 1

    def _read(self, name: str, time: int) -> np.ndarray:
        if self._stored is not None:
            return self._stored.read(name, time)
        return getattr(self._tracks, name)[time].detach().cpu().numpy()

    def _seen(self, time: int) -> Tensor:
        return torch.isfinite(self._points(time)).all(-1)

    def image(self, time: int) -> UInt8[np.ndarray, "H W 3"]:
        """The reference frame."""
        return self._image

    def cloud(self, time: int, look: Look) -> Cloud:
        """All points, those the camera does not see now at half their brightness."""
        picked = self._pick(self._seen(time), look.max_points)
        points = self._points(time).reshape(-1, 3).numpy()[picked]
        visible = self._read("visible", time).reshape(-1)[picked]
        colors = self._image.reshape(-1, 3)[picked]
        shown = np.where(visible[:, None], colors, colors // 2)
        return Cloud(points=self.place(points).astype(np.float32), colors=shown)

    def lines(self, time: int, look: Look) -> Lines:
        """Where the points that move came from: their last few steps, fading."""
        times = list(range(max(0, time - TRAIL), time + 1))
        steps = torch.stack([self._points(t) for t in times])
        moving = torch.isfinite(steps).all(-1).all(0) & ((steps[-1] - steps[0]).norm(dim=-1) > 0.01 * self.unit)
        picked = self._pick(moving, max(1, look.max_lines // max(1, len(times) - 1)))
        if len(times) < 2 or not len(picked):
            return _no_lines()
        trail = self.place(steps.reshape(len(times), -1, 3).numpy()[:, picked]).astype(np.float32)
        fade = np.linspace(0.15, 1, len(times))[:, None, None]
        colors = (self._image.reshape(-1, 3)[picked] * fade).astype(np.uint8)
        pairs = lambda x: np.stack([x[:-1], x[1:]], axis=2).reshape(-1, 2, 3)  # noqa: E731
        return Lines(points=pairs(trail), colors=pairs(colors))


def _no_lines() -> Lines:
    return Lines(points=np.zeros((0, 2, 3), np.float32), colors=np.zeros((0, 2, 3), np.uint8))


def frames_of(item: StoredScene | Scene4D | Tracks4D) -> Frames:
    """Choose how to show a scene or tracks.

    Raises:
        ValueError: its first frames are missing or damaged.
    """
    is_tracks = item.kind == "tracks" if isinstance(item, StoredScene) else isinstance(item, Tracks4D)
    return TrackFrames(item) if is_tracks else SceneFrames(item)  # type: ignore[arg-type]
