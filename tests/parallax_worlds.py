"""Exact flow of a wall with a bump and a moving disc, for the parallax tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from worldline.align.flow_adjust import FlowState, Matches
from worldline.systems.parallax.fill import EdgeWeights
from worldline.systems.parallax.representation import FlowPairs, encode_flow, grid_pixels


@dataclass(frozen=True)
class World:
    """A smooth relief z = relief(x, y) in front of moving cameras, seen as height field along the first camera's rays.

    Every surface point is parametrised by its pixel in a far virtual camera, so flow is exact: a pixel's ray is
    intersected with the relief by fixed-point iteration.
    """

    w2c: np.ndarray
    K: np.ndarray
    size: tuple[int, int]
    mover: tuple[float, float, float] | None = None  # centre x, y in the first image and radius, in px
    mover_step: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def frames(self) -> int:
        return len(self.w2c)

    @property
    def intrinsics(self) -> np.ndarray:
        return np.tile(self.K, (self.frames, 1))

    def relief(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 4 + 0.3 * x - 0.5 * y + 0.6 * np.sin(1.7 * x) * np.cos(1.3 * y)

    def depth(self, t: int, pixels: np.ndarray) -> np.ndarray:
        """z-depth of the relief along the rays of pixels [N, 2] of frame t."""
        ray = np.c_[(pixels - self.K[2:]) / self.K[:2], np.ones(len(pixels))]
        R, shift = self.w2c[t, :3, :3], self.w2c[t, :3, 3]
        direction, centre = ray @ R, -R.T @ shift
        z = np.full(len(pixels), 4.0)
        for _ in range(80):
            point = centre + z[:, None] * direction
            z += 0.7 * (self.relief(point[:, 0], point[:, 1]) - point[:, 2]) / direction[:, 2]
        return z

    def moves(self, t: int, pixels: np.ndarray) -> np.ndarray:
        """Which pixels of frame t are on the mover (a disc of the first image that slides along with the step)."""
        if self.mover is None:
            return np.zeros(len(pixels), bool)
        x, y, radius = self.mover
        centre = self.project(t, self._mover_centre() + t * np.array(self.mover_step))
        return np.linalg.norm(pixels - centre, axis=1) < radius

    def _mover_centre(self) -> np.ndarray:
        x, y, _ = self.mover or (0.0, 0.0, 0.0)
        pixel = np.array([[x, y]])
        return np.array([(x - self.K[2]) / self.K[0], (y - self.K[3]) / self.K[1], 1]) * self.depth(0, pixel)[0] * 0.7

    def project(self, t: int, points: np.ndarray) -> np.ndarray:
        camera = points @ self.w2c[t, :3, :3].T + self.w2c[t, :3, 3]
        return camera[..., :2] / camera[..., 2:] * self.K[:2] + self.K[2:]

    def goal(self, i: int, j: int, pixels: np.ndarray) -> np.ndarray:
        """Where pixels [N, 2] of frame i are in frame j."""
        depth = self.depth(i, pixels)
        moving = self.moves(i, pixels)
        depth = np.where(moving, 0.7 * depth, depth)
        ray = np.c_[(pixels - self.K[2:]) / self.K[:2], np.ones(len(pixels))]
        R, shift = self.w2c[i, :3, :3], self.w2c[i, :3, 3]
        world = (ray * depth[:, None] - shift) @ R
        world = world + moving[:, None] * (j - i) * np.array(self.mover_step)
        return self.project(j, world)

    def inside(self, pixels: np.ndarray) -> np.ndarray:
        return ((pixels >= 0) & (pixels <= (self.size[1] - 1, self.size[0] - 1))).all(-1)

    def matches(self, offsets: tuple[int, ...], count: int = 150, noise_px: float = 0.0) -> Matches:
        points = grid_pixels(self.size, count)
        target = np.arange(self.frames)[:, None] + np.array(offsets)[None]
        target = np.where((target >= 0) & (target < self.frames), target, -1).astype(np.int32)
        goal = np.zeros((*target.shape, len(points), 2), np.float32)
        weight = np.zeros(goal.shape[:3], np.float32)
        rng = np.random.default_rng(0)
        for i, k in zip(*np.nonzero(target >= 0), strict=True):
            exact = self.goal(int(i), int(target[i, k]), points.astype(np.float64))
            goal[i, k] = exact + noise_px * rng.normal(size=exact.shape)
            weight[i, k] = self.inside(exact)
        pixels = np.broadcast_to(points, (self.frames, len(points), 2)).copy()
        return Matches(pixels=pixels, target=target, goal=goal, weight=weight)

    def pairs(self, offsets: tuple[int, ...]) -> FlowPairs:
        height, width = self.size
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        pixels = np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)
        flow = np.zeros((self.frames, len(offsets), height, width, 2), np.int16)
        weight = np.zeros(flow.shape[:4], np.uint8)
        for i in range(self.frames):
            for k, offset in enumerate(offsets):
                if 0 <= i + offset < self.frames:
                    goal = self.goal(i, i + offset, pixels)
                    trust = self.inside(goal).astype(np.float32).reshape(height, width)
                    flow[i, k], weight[i, k] = encode_flow((goal - pixels).reshape(height, width, 2), trust)
        return FlowPairs(offsets=offsets, flow=flow, weight=weight)

    def state(self, matches: Matches) -> FlowState:
        """The true state of these matches."""
        r = np.stack([1 / self.depth(t, matches.pixels[t].astype(np.float64)) for t in range(self.frames)])
        return FlowState(w2c=self.w2c.copy(), intrinsics=self.intrinsics, r=r, log_scale=np.zeros(self.frames))


def path(frames: int, move: tuple[float, float, float], turn_deg: tuple[float, float, float]) -> np.ndarray:
    """World-to-camera poses [T, 4, 4] of a slightly curved path; the first is the identity."""
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    for t in range(frames):
        bend = np.sin(0.5 * t)
        w2c[t, :3, :3] = Rotation.from_euler("xyz", np.array(turn_deg) * (t + 0.4 * bend), degrees=True).as_matrix()
        centre = np.array(move) * t + 0.3 * np.array([0, move[0], move[1]]) * bend
        w2c[t, :3, 3] = -w2c[t, :3, :3] @ centre
    return w2c


def world(
    frames: int = 8,
    move: tuple[float, float, float] = (0.12, 0.03, 0.05),
    turn_deg: tuple[float, float, float] = (0.4, -0.7, 0.3),
    size: tuple[int, int] = (60, 90),
    focal: float = 80.0,
    **mover,
) -> World:
    K = np.array([focal, focal, (size[1] - 1) / 2, (size[0] - 1) / 2])
    return World(w2c=path(frames, move, turn_deg), K=K, size=size, **mover)


def pose_errors(estimated: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Largest rotation error (rad) and centre error over the path, after fitting the scale (first = identity)."""
    angle = np.linalg.norm(
        Rotation.from_matrix(estimated[:, :3, :3] @ truth[:, :3, :3].transpose(0, 2, 1)).as_rotvec(), axis=1
    ).max()
    a, b = np.linalg.inv(estimated)[:, :3, 3], np.linalg.inv(truth)[:, :3, 3]
    scale = (a * b).sum() / max((a * a).sum(), 1e-30)
    return float(angle), float(
        np.linalg.norm(scale * a - b, axis=1).max() / np.linalg.norm(np.diff(b, axis=0), axis=1).sum()
    )


def uniform(height: int, width: int) -> EdgeWeights:
    """An image without edges."""
    right, down = np.ones((height, width), np.float32), np.ones((height, width), np.float32)
    right[:, -1], down[-1] = 0, 0
    return EdgeWeights(right=right, down=down)


def true_r(scene: World, t: int) -> np.ndarray:
    """Inverse depth [H, W] of frame t."""
    height, width = scene.size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)
    return (1 / scene.depth(t, pixels)).reshape(height, width).astype(np.float32)


def camera_state(scene: World) -> FlowState:
    """The true cameras."""
    return scene.state(scene.matches((1,), count=4))


def frames_of(scene: World, seed: int = 0) -> list[np.ndarray]:
    """Grey frames that the flow really maps onto each other: noise of frame 0, carried along."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 255, scene.size).astype(np.float32)
    frames = [first]
    height, width = scene.size
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    import cv2

    first = cv2.GaussianBlur(first, (0, 0), 1.5)
    first = (first - first.min()) / np.ptp(first) * 255
    frames = [first.astype(np.uint8)]
    pixels = np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)
    for t in range(1, scene.frames):
        source = scene.goal(t, 0, pixels).reshape(height, width, 2).astype(np.float32)
        warped = cv2.remap(first.astype(np.float32), source[..., 0], source[..., 1], cv2.INTER_LINEAR, borderMode=2)
        frames.append(warped.astype(np.uint8))
    return frames
