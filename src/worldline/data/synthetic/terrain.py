"""Terrain: the heightfield y = -sum_i a_i sin(k_i . (x, z) + phase_i), flattened near the first camera's foot.

Rays meet it by bounded marching: the height above the ground changes along a ray by at most
|d_y| + L |d_xz| per unit depth with L = sum_i a_i |k_i|, so each step is safe; Newton steps then make the hit exact.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldline.data.synthetic.shapes import FAR, NEAR, Vector

STEPS = 40
NEWTON = 3


def height(waves: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """y of the ground at (x, z); waves is [K, 4] of (amplitude, kx, kz, phase)."""
    phase = waves[:, 1, None] * np.ravel(x) + waves[:, 2, None] * np.ravel(z) + waves[:, 3, None]
    return -(waves[:, 0, None] * np.sin(phase)).sum(0).reshape(np.shape(x))


def surface(waves: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dy/dx, dy/dz) of the ground; waves is [4, K, ...] broadcastable against x."""
    y = torch.zeros_like(x)
    gx, gz = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(waves.shape[1]):
        amplitude, kx, kz = waves[0, k], waves[1, k], waves[2, k]
        phase = kx * x + kz * z + waves[3, k]
        y = y - amplitude * phase.sin()
        slope = -amplitude * phase.cos()
        gx, gz = gx + kx * slope, gz + kz * slope
    return y, gx, gz


def _gap(waves: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Height above the ground, positive in the air."""
    for k in range(waves.shape[1]):
        y = y + waves[0, k] * (waves[1, k] * x + waves[2, k] * z + waves[3, k]).sin()
    return -y


def hit(o: Vector, d: Vector, waves: Tensor, far: Tensor) -> Tensor:
    """Depth of the first hit with the terrain, FAR where the ray leaves the disc of depth `far` or passes above it."""
    lipschitz = (waves[0] * (waves[1] ** 2 + waves[2] ** 2).sqrt()).sum(0)
    rate = d[1].abs() + lipschitz * (d[0] * d[0] + d[2] * d[2]).sqrt()
    t = torch.full_like(rate, NEAR)
    for _ in range(STEPS):
        gap = _gap(waves, o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
        t = torch.minimum((t + gap / rate).clamp_min(NEAR), far)
    for _ in range(NEWTON):
        y, gx, gz = surface(waves, o[0] + t * d[0], o[2] + t * d[2])
        descent = d[1] - gx * d[0] - gz * d[2]
        t = t - (o[1] + t * d[1] - y) / torch.where(descent.abs() < 0.02 * rate, 0.02 * rate, descent)
        t = torch.minimum(t.clamp_min(NEAR), far)
    gap = _gap(waves, o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
    return torch.where((gap.abs() < 2e-5 * t + 1e-5) & (t < far), t, FAR)
