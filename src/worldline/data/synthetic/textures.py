"""Solid procedural textures: fractal value noise, checks, stripes, wood, gradients and tiles in texture coordinates.

Texture coordinates are a fixed affine map of object coordinates, so texture sticks to the surface under every motion.
One unit is the coarsest noise cell. Every component fades out as the pixel footprint approaches its wavelength.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldline.data.synthetic.shapes import Vector

OCTAVES = 4
PATTERNS = ("noise", "checks", "stripes", "wood", "gradient", "tiles")


def _scramble(h: Tensor) -> Tensor:
    """Well-mixed 16 bits from 16 bits, without 32-bit overflow."""
    h = ((h ^ (h >> 7)) * 23197) & 0xFFFF
    h = ((h ^ (h >> 8)) * 27803) & 0xFFFF
    return (h ^ (h >> 9)).to(torch.float32)


def value_noise(q: Vector) -> Tensor:
    """Smooth noise in [-1, 1] with lattice spacing 1, from hashed lattice values and quintic interpolation."""
    floors = [c.floor() for c in q]
    fractions = [c - f for c, f in zip(q, floors, strict=True)]
    wx, wy, wz = (f * f * f * (f * (f * 6 - 15) + 10) for f in fractions)
    ix, iy, iz = (f.to(torch.int32) for f in floors)
    ax, ay, az = ix * 26699, iy * 13931, iz * 20411
    x0, x1 = ax & 0xFFFF, (ax + 26699) & 0xFFFF
    y0, y1 = ay & 0xFFFF, (ay + 13931) & 0xFFFF
    z0, z1 = az & 0xFFFF, (az + 20411) & 0xFFFF
    planes = []
    for z in (z0, z1):
        lines = []
        for y in (y0, y1):
            edge = y ^ ((z * 5) & 0xFFFF)
            lines.append(torch.lerp(_scramble(x0 ^ edge), _scramble(x1 ^ edge), wx))
        planes.append(torch.lerp(lines[0], lines[1], wy))
    return torch.lerp(planes[0], planes[1], wz) * (2 / 65535) - 1


def fade(footprint: Tensor, frequency: float | Tensor) -> Tensor:
    """1 where a wavelength 1/frequency spans four pixels or more, 0 where it spans less than 1.7 (no aliasing)."""
    return (1.7 - 2.9 * footprint * frequency).clamp(0, 1)


def fractal_noise(q: Vector, footprint: Tensor, octaves: int = OCTAVES) -> Tensor:
    """Sum of octaves of value noise with amplitudes halving, about [-1, 1]: the 1/f spectrum of natural texture."""
    total = torch.zeros_like(footprint)
    for octave in range(octaves):
        scale, shift = 2.03**octave, 17.31 * octave
        noise = value_noise((q[0] * scale + shift, q[1] * scale - shift, q[2] * scale + 2 * shift))
        total = total + noise * fade(footprint, scale) * (0.55 * 0.63**octave)
    return total


def _square(u: Tensor, footprint: Tensor) -> Tensor:
    """Square wave of period 1 in [-1, 1] with edges one pixel wide, faded out below the pixel size."""
    gain = 0.25 / footprint.clamp_min(0.012)
    return ((2 * math.pi * u).sin() * gain).clamp(-1, 1) * fade(footprint, 1.0)


def _line(u: Tensor, footprint: Tensor, across: Tensor) -> Tensor:
    """Thin lines at integers of u in [0, 1], weaker on faces along which u is constant (across = 1)."""
    distance = (u - u.floor() - 0.5).abs()  # 0.5 on the line
    width = footprint.clamp_min(0.012)
    return (((distance - 0.475) / width) + 0.5).clamp(0, 1) * (1 - across) * fade(footprint, 1.0)


def pattern(q: Vector, normal: Vector, noise: Tensor, footprint: Tensor, weights: Tensor, warp: Tensor) -> Tensor:
    """Mixture of the patterns in [0, 1]; weights is [6, ...] in the order of PATTERNS, q in pattern periods."""
    u, v, w = q[0] + warp * noise, q[1] + warp * noise, q[2] - warp * noise
    checks = _square(u, footprint) * _square(v + 0.13, footprint) * _square(w + 0.29, footprint)
    stripes = _square(u, footprint)
    rings = (u * u + w * w).sqrt() * 2 + noise
    wood = (2 * math.pi * rings).sin() * fade(footprint, 2.0)
    gradient = (v * 0.7).clamp(-1, 1)
    lines = torch.maximum(
        _line(u, footprint, normal[0].abs()),
        torch.maximum(_line(v, footprint, normal[1].abs()), _line(w, footprint, normal[2].abs())),
    )
    mixed = (
        weights[0] * (noise * 2.4).clamp(-1, 1)
        + weights[1] * checks
        + weights[2] * stripes
        + weights[3] * wood
        + weights[4] * gradient
        + weights[5] * (2 * lines - 1)
    )
    return 0.5 + 0.5 * mixed
