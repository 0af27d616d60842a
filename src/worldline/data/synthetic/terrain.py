"""Terrain: the heightfield y = -sum_i a_i sin(k_i . (x, z) + phase_i).

Rays meet it by bounded marching. A ray is at height f(t) above the ground, |f''| <= C = sum_i a_i (k_i . d_xz)^2,
so it cannot reach zero before the root of f + f' s - C s^2 / 2: a step that never passes a crest, grows where the ray
climbs and converges like Newton's where it meets the ground. Most rays need a dozen steps; the few that graze hills go
on alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldline.data.synthetic.shapes import FAR, Vector

STEPS = 12
MORE_STEPS = 12
ROUNDS = 12


def height(waves: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Ground y at (x, z); waves is [K, 4] of (amplitude, kx, kz, phase)."""
    phase = waves[:, 1, None] * np.ravel(x) + waves[:, 2, None] * np.ravel(z) + waves[:, 3, None]
    return -(waves[:, 0, None] * np.sin(phase)).sum(0).reshape(np.shape(x))


def slopes(waves: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Ground slopes (dy/dx, dy/dz); waves is [4, K, ...] broadcastable against x."""
    gx, gz = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(waves.shape[1]):
        slope = -waves[0, k] * (waves[1, k] * x + waves[2, k] * z + waves[3, k]).cos()
        gx, gz = gx + waves[1, k] * slope, gz + waves[2, k] * slope
    return gx, gz


def march(o: Vector, d: Vector, waves: Tensor, far: Tensor, t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Depth after some more safe steps from depth t, and whether the ray has met the ground or left for good."""
    rates = [waves[1, k] * d[0] + waves[2, k] * d[2] for k in range(waves.shape[1])]
    phases = [waves[1, k] * o[0] + waves[2, k] * o[2] + waves[3, k] for k in range(waves.shape[1])]
    bend = torch.full_like(t, 1e-9)
    highest = torch.zeros_like(waves[0, 0])
    for k, rate in enumerate(rates):
        bend = bend + waves[0, k] * rate * rate
        highest = highest + waves[0, k]
    gap = t
    for _ in range(steps):
        gap, climb = -o[1] - t * d[1], -d[1]
        for k, rate in enumerate(rates):
            phase = phases[k] + t * rate
            gap = gap - waves[0, k] * phase.sin()
            climb = climb - waves[0, k] * rate * phase.cos()
        gap = gap.clamp_min(0)
        root = (climb * climb + 2 * bend * gap).sqrt()
        step = torch.where(climb < 0, 2 * gap / (root - climb + 1e-12), (climb + root) / bend)
        t = torch.minimum(t + step, far)
    met = gap < 1e-5 + 2e-6 * t
    gone = (t >= far) | ((d[1] <= 0) & (o[1] + t * d[1] < -highest))
    return torch.where(gone & ~met, far, t), met | gone


def hit(o: Vector, d: Vector, waves: Tensor, far: Tensor, t: Tensor, settled: Tensor) -> Tensor:
    """Depth of the first hit with the terrain; FAR where the ray leaves the depth `far` or passes above it.

    Args:
        o: ray origins, broadcastable against d.
        d: ray directions [B, T, H, W].
        waves: [4, K, B, 1, 1, 1].
        far: [B, 1, 1, 1].
        t: depth after the first `march`.
        settled: whether it needs no more.
    """
    full = lambda value: value.expand(t.shape).reshape(-1)  # noqa: E731
    depth, flat = t.reshape(-1).clone(), [[full(c) for c in v] for v in (o, d)]
    bound, table = full(far), waves.expand(*waves.shape[:3], *t.shape[1:]).reshape(*waves.shape[:2], -1)
    left = (~settled).expand(t.shape).reshape(-1).nonzero()[:, 0]
    for _ in range(ROUNDS):
        if not len(left):
            break
        origin, along = ((v[0][left], v[1][left], v[2][left]) for v in flat)
        depth[left], done = march(origin, along, table[:, :, left], bound[left], depth[left], MORE_STEPS)
        left = left[~done]
    depth = depth.view_as(t)
    return torch.where(depth < far, depth, FAR)
