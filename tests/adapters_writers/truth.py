"""A small moving world with exact truth in float64, for any camera: a slanted wall, a floor, sky, a rolling ball.

Written in plain numpy, apart from the package: formats that fix their intrinsics (TUM, TartanAir, ...) need a scene in
front of a camera that looks past the image centre, and the writers' truth must not come from the code under test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np

FRAMES, SIZE = 4, (24, 32)
SKY, BACKGROUND, BALL = -1, 0, 1


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a writer writes; the world is not that of the first camera. Metres, OpenCV axes, centres at integers."""

    rgb: np.ndarray  # [T, H, W, 3] uint8
    depth: np.ndarray  # [T, H, W] z, 0 in the sky
    k: np.ndarray  # [3, 3]
    cam2world: np.ndarray  # [T, 4, 4]
    points: np.ndarray  # [T, H, W, 3] world, 0 in the sky
    flow: np.ndarray  # [T, H, W, 3] world displacement to the next frame; 0 in the last
    ahead: np.ndarray  # [T - 1, H, W, 3] the pixel's point at the next frame, in the next camera
    optical: np.ndarray  # [T - 1, H, W, 2] pixels
    seen: np.ndarray  # [T - 1, H, W] whether the next camera sees the point
    object_id: np.ndarray  # [T, H, W]
    ball: np.ndarray  # [T, 4, 4] object to world
    tracks: np.ndarray  # [T, H, W, 3] world positions of what frame 0 sees
    visible: np.ndarray  # [T, H, W]
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def world2cam(self) -> np.ndarray:
        return np.linalg.inv(self.cam2world)

    @property
    def local(self) -> np.ndarray:
        """The points in their own camera."""
        return to(self.world2cam, self.points) * (self.depth > 0)[..., None]


def to(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [T, ..., 3] through poses [T, 4, 4], or [..., 3] through one."""
    extra = points.ndim - pose.ndim + 1
    r = pose[..., :3, :3].reshape(*pose.shape[:-2], *[1] * extra, 3, 3)
    t = pose[..., :3, 3].reshape(*pose.shape[:-2], *[1] * extra, 3)
    return (r @ points[..., None])[..., 0] + t


def turn(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    """Rotation matrix about an axis (Rodrigues)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def rigid(rotation: np.ndarray, translation: np.ndarray | tuple[float, float, float]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, translation
    return pose


def simple_k(focal: float = 30.0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.array([[focal, 0, (size[1] - 1) / 2], [0, focal, (size[0] - 1) / 2], [0, 0, 1.0]])


class World:
    """The surfaces in scene axes: z ahead, y down, opening angles scaled to those of the camera."""

    def __init__(self, half: tuple[float, float], metres: float, frames: int, moving: bool, sky: bool) -> None:
        self.w, self.h, self.m, self.sky = half[0], half[1], metres, sky
        step = np.array([0.5 * self.w, 0.04 * self.h, 0.1]) * metres if moving else np.zeros(3)
        centres = np.array([-0.9 * self.w, -0.1 * self.h, 4.0]) * metres + np.arange(frames)[:, None] * step
        self.ball = np.stack([rigid(turn((0.2, 1, 0.1), 0.15 * t * moving), c) for t, c in enumerate(centres)])
        self.radius = 1.6 * min(self.h, self.w) * metres
        self.normal, self.offset = np.array([0.15 / self.w * 0.3, 0.0, 1.0]), 8.0 * metres

    def cast(self, t: int, eye: np.ndarray, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance in units of the rays and the object met; infinity and SKY for none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            wall = (self.offset - eye @ self.normal) / (ray @ self.normal)
            top = eye[1] + wall * ray[..., 1] < -5.0 * self.h * self.m  # the wall ends there
            wall = np.where((wall > 0) & ~(top & self.sky), wall, np.inf)
            floor = (4.2 * self.h * self.m - eye[1]) / ray[..., 1]
            floor = np.where(floor > 0, floor, np.inf)
        offset = eye - self.ball[t, :3, 3]
        a, b, c = (ray * ray).sum(-1), (ray * offset).sum(-1), offset @ offset - self.radius**2
        root = b * b - a * c
        ball = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / np.where(a > 0, a, 1), np.inf)
        ball = np.where(ball > 0, ball, np.inf)
        nearest = np.minimum(np.minimum(wall, floor), ball)
        return nearest, np.where(np.isinf(nearest), SKY, np.where(ball <= nearest, BALL, BACKGROUND))

    def color(self, hit: np.ndarray, which: np.ndarray, t: int) -> np.ndarray:
        """Smooth colours fixed to the surfaces (a jpeg must not ruin them)."""
        own = to(np.linalg.inv(self.ball[t]), hit)
        on = np.where((which == BALL)[..., None], 3 * own, hit) / (self.w * self.m)
        shade = 0.5 + 0.3 * np.sin(on * 0.8 + np.array([0.0, 1.0, 2.0])) * np.where(which == BALL, -1, 1)[..., None]
        return np.where((which == SKY)[..., None], np.array([0.5, 0.6, 0.9]), shade)


def make(
    k: np.ndarray | None = None,
    size: tuple[int, int] = SIZE,
    frames: int = FRAMES,
    metres: float = 1.0,
    moving: bool = True,
    motion: float = 1.0,
    sky: bool = True,
) -> Truth:
    """Render the world.

    Args:
        k: intrinsics; a camera with a field of view of 56 degrees by default.
        size: (H, W).
        frames: T.
        metres: scale: the ball is 4, the wall 8 of these away.
        moving: whether the ball moves.
        motion: how fast the camera moves.
        sky: whether the wall ends somewhere.
    """
    k = simple_k(size=size) if k is None else np.asarray(k, float)
    height, width = size
    uv = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(float)
    rays = np.concatenate([uv, np.ones((*size, 1))], -1) @ np.linalg.inv(k).T
    world = World((width / 2 / k[0, 0], height / 2 / k[1, 1]), metres, frames, moving, sky)
    scene2world = rigid(turn((1, 2, -1), 0.7), (3.0, -2.0, 5.0))
    poses = _cameras(k, size, world, frames, motion)
    out: dict[str, list[np.ndarray]] = {name: [] for name in ("rgb", "depth", "points", "which")}
    for t, pose in enumerate(poses):
        distance, which = world.cast(t, pose[:3, 3], rays @ pose[:3, :3].T)
        depth = np.where(np.isinf(distance), 0, distance)
        hit = to(pose, rays * depth[..., None])
        out["rgb"].append((world.color(hit, which, t) * 255).astype(np.uint8))
        for name, value in (("depth", depth), ("points", hit), ("which", which)):
            out[name].append(value)
    depth, hits, which = (np.stack(out[name]) for name in ("depth", "points", "which"))
    return _finish(k, np.stack(out["rgb"]), depth, hits, which, poses, world, scene2world)


def _cameras(k: np.ndarray, size: tuple[int, int], world: World, frames: int, motion: float) -> np.ndarray:
    """Camera to scene: the middle of the image looks along z."""
    middle = np.linalg.inv(k) @ np.array([(size[1] - 1) / 2, (size[0] - 1) / 2, 1])
    middle /= np.linalg.norm(middle)
    axis = np.cross(middle, [0, 0, 1.0])
    straight = turn(tuple(axis), np.arccos(middle[2])) if np.linalg.norm(axis) > 1e-9 else np.eye(3)
    poses = []
    for t in range(frames):
        s = motion * t
        shift = np.array([0.20 * world.w, -0.12 * world.h, 0.12]) * world.m * s
        swing = turn((0, 1, 0), 0.06 * world.w * s) @ turn((1, 0, 0), 0.05 * world.h * s)
        poses.append(rigid(swing @ turn((0, 0, 1), 0.02 * s) @ straight, shift))
    return np.stack(poses)


def _finish(
    k: np.ndarray, rgb: np.ndarray, depth: np.ndarray, hits: np.ndarray, which: np.ndarray,
    poses: np.ndarray, world: World, scene2world: np.ndarray,
) -> Truth:  # fmt: skip
    frames, height, width = depth.shape
    solid, flow, ahead, optical, seen = depth > 0, np.zeros_like(hits), [], [], []
    uv = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(float)

    def carried(points: np.ndarray, ids: np.ndarray, a: int, b: int) -> np.ndarray:
        return np.where((ids == BALL)[..., None], to(world.ball[b] @ np.linalg.inv(world.ball[a]), points), points)

    def viewed(points: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        local = to(np.linalg.inv(poses[t]), points)
        pixel = (local / np.where(local[..., 2:] > 0, local[..., 2:], 1)) @ k.T
        inside = (local[..., 2] > 0) & (pixel[..., :2] > -0.5).all(-1)
        inside &= (pixel[..., 0] < width - 0.5) & (pixel[..., 1] < height - 0.5)
        distance, _ = world.cast(t, poses[t][:3, 3], points - poses[t][:3, 3])
        return local, pixel[..., :2], inside & (distance > 1 - 1e-6)

    for t in range(frames - 1):
        there = carried(hits[t], which[t], t, t + 1)
        flow[t] = (there - hits[t]) * solid[t][..., None]
        local, pixel, visible = viewed(there, t + 1)
        ahead.append(local * solid[t][..., None])
        optical.append((pixel - uv) * solid[t][..., None])
        seen.append(visible & solid[t])
    tracks = np.stack([carried(hits[0], which[0], 0, t) for t in range(frames)])
    visible = np.stack([viewed(tracks[t], t)[2] & solid[0] for t in range(frames)])
    visible[0] = solid[0]
    world_points = to(scene2world, hits) * solid[..., None]
    return Truth(
        rgb=rgb, depth=depth, k=k, cam2world=scene2world @ poses, points=world_points,
        flow=flow @ scene2world[:3, :3].T,
        ahead=np.reshape(ahead, (frames - 1, height, width, 3)),
        optical=np.reshape(optical, (frames - 1, height, width, 2)),
        seen=np.reshape(seen, (frames - 1, height, width)).astype(bool),
        object_id=which, ball=scene2world @ world.ball, tracks=to(scene2world, tracks) * solid[0][..., None],
        visible=visible,
    )  # fmt: skip


@cache
def default() -> Truth:
    """The scene most writers share."""
    return make()


@cache
def narrow(fx: float, fy: float, cx: float, cy: float, metres: float = 1.0) -> Truth:
    """The scene before a camera whose intrinsics are for a larger image (the upper left corner of it)."""
    return make(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), metres=metres)
