"""A tiny analytic world (a room, a resting and a moving sphere) whose windows are observed in random gauges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.align.observation import Observation
from worldline.geometry.pose import Similarity, from_rt, so3_exp


@dataclass(frozen=True, kw_only=True)
class World:
    points: Tensor  # [T, H, W, 3] world = first camera
    depth: Tensor
    pose: Tensor  # [T, 4, 4] float64
    focal: Tensor  # [T]
    flow: Tensor  # [T, H, W, 3]
    moving: Tensor  # [T, H, W]

    @property
    def size(self) -> tuple[int, int]:
        return self.depth.shape[1], self.depth.shape[2]

    @property
    def extent(self) -> float:
        return float((self.points - self.points.mean((0, 1, 2))).norm(dim=-1).mean())


def make_world(
    frames: int,
    size: tuple[int, int] = (24, 36),
    focal: float = 33.0,
    motion: str = "handheld",
    seed: int = 0,
    zoom: float = 1.0,
) -> World:
    """Analytic ray casting; motion: handheld, static, rotation or plane (a wall seen head on by a resting camera)."""
    H, W = size
    g = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, frames, dtype=torch.float64)
    phase = torch.rand(6, generator=g, dtype=torch.float64) * 6.28
    steps = torch.arange(frames, dtype=torch.float64)[:, None] / 16
    turn = torch.stack(
        [
            0.15 * torch.sin(steps[:, 0] + phase[0]),
            0.25 * torch.sin(0.7 * steps[:, 0] + phase[1]),
            0.05 * torch.sin(steps[:, 0] + phase[2]),
        ],
        -1,
    )
    move = torch.stack(
        [
            0.6 * torch.sin(0.8 * steps[:, 0] + phase[3]),
            0.25 * torch.sin(1.3 * steps[:, 0] + phase[4]),
            0.5 * torch.sin(0.6 * steps[:, 0] + phase[5]),
        ],
        -1,
    )
    if motion in ("static", "plane"):
        turn, move = torch.zeros_like(turn), torch.zeros_like(move)
    if motion in ("rotation",):
        move = torch.zeros_like(move)
    pose = from_rt(so3_exp(turn), move)
    focals = focal * zoom**t
    y, x = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    ray = torch.stack(
        [
            (x - (W - 1) / 2).expand(frames, H, W) / focals[:, None, None],
            (y - (H - 1) / 2).expand(frames, H, W) / focals[:, None, None],
            torch.ones(frames, H, W).double(),
        ],
        -1,
    )
    direction = torch.einsum("tij,thwj->thwi", pose[:, :3, :3], ray)
    origin = pose[:, None, None, :3, 3]
    low, high = torch.tensor([-2.5, -1.5, -3.0]).double(), torch.tensor([2.5, 1.2, 5.0]).double()
    if motion == "plane":
        depth = torch.full((frames, H, W), 4.0, dtype=torch.float64)
        flow, moving = torch.zeros(frames, H, W, 3).double(), torch.zeros(frames, H, W, dtype=torch.bool)
    else:
        walls = torch.where(direction > 0, (high - origin) / direction, (low - origin) / direction)
        depth = walls.amin(-1)
        flow, moving = torch.zeros(frames, H, W, 3).double(), torch.zeros(frames, H, W, dtype=torch.bool)
        ball = torch.stack(
            [-0.8 + 0.06 * steps[:, 0] * 4, 0.1 + 0 * steps[:, 0], 2.5 + 0.3 * torch.sin(steps[:, 0] * 2)], -1
        )
        for centre, radius, drifts in (
            (torch.tensor([0.9, 0.5, 3.0]).double().expand(frames, 3), 0.6, False),
            (ball, 0.5, True),
        ):
            offset = origin - centre[:, None, None]
            a, b, c = (direction**2).sum(-1), (direction * offset).sum(-1), (offset**2).sum(-1) - radius**2
            disc = b * b - a * c
            near = (-b - disc.clamp_min(0).sqrt()) / a
            hit = (disc > 0) & (near > 0) & (near < depth)
            depth = torch.where(hit, near, depth)
            moving = (moving & ~hit) | (hit & drifts)
        velocity = torch.cat([ball[1:] - ball[:-1], torch.zeros(1, 3).double()])
        flow = torch.where(moving[..., None], velocity[:, None, None], flow)
    points = origin + depth[..., None] * direction
    first = pose[0]
    back = first[:3, :3].T
    return World(
        points=(points - first[:3, 3]) @ back.T, depth=depth, pose=torch.linalg.inv(first) @ pose, focal=focals,
        flow=flow @ back.T, moving=moving,
    )  # fmt: skip


def observe(
    world: World, windows: list[range], *, noise: float = 0.0, outliers: float = 0.0, seed: int = 1, gauge: float = 1.0,
    with_flow: bool = False,
) -> list[Observation]:  # fmt: skip
    """Windows in random similarity gauges, range noise along the pixel's ray, gross outliers in the bounding box."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for window in windows:
        f = torch.tensor(list(window))
        centre = world.pose[f, :3, 3][:, None, None]
        p = world.points[f]
        p = centre + (p - centre) * (1 + noise * torch.randn(*p.shape[:3], 1, generator=g).double())
        bad = torch.rand(p.shape[:3], generator=g) < outliers
        low, high = p.flatten(0, 2).amin(0), p.flatten(0, 2).amax(0)
        p = torch.where(bad[..., None], low + (high - low) * torch.rand(p.shape, generator=g).double(), p)
        s = Similarity(
            scale=torch.exp(gauge * 0.5 * torch.randn((), generator=g).double()),
            rotation=so3_exp(gauge * 0.6 * torch.randn(3, generator=g).double()),
            translation=gauge * torch.randn(3, generator=g).double(),
        )
        flow = s.apply_vector(world.flow[f]).float() if with_flow else None
        out.append(
            Observation(
                frames=tuple(window), points=s.apply(p).float(), confidence=torch.ones(p.shape[:3]), scene_flow=flow
            )
        )
    return out
