"""A real camera's failings, off unless asked for: exposure, white balance, vignetting, tone and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SensorConfig:
    """Strengths; each is drawn per clip between zero and this.

    Attributes:
        exposure: log2 of the gain.
        flicker: log2 of the change of gain during the clip.
        balance: relative gain of each colour channel.
        vignette: darkening of the corners.
        gamma: log2 of the tone exponent.
        noise: standard deviation of the pixel noise.
    """

    exposure: float = 0.7
    flicker: float = 0.15
    balance: float = 0.12
    vignette: float = 0.35
    gamma: float = 0.35
    noise: float = 0.03


def expose(rgb: Float[Tensor, "B T H W 3"], seeds: Sequence[int], config: SensorConfig) -> Float[Tensor, "B T H W 3"]:
    """What a real camera would record of perfect images in [0, 1]; each clip by its own seed."""
    return torch.stack([_expose_one(clip, seed, config) for clip, seed in zip(rgb, seeds, strict=True)])


def _expose_one(rgb: Tensor, seed: int, config: SensorConfig) -> Tensor:
    frames, height, width = rgb.shape[:3]
    generator = torch.Generator(rgb.device).manual_seed((int(seed) * 2654435761 + 12345) % (1 << 63))
    u = torch.rand(12, generator=generator, device=rgb.device) * 2 - 1
    time = torch.arange(frames, device=rgb.device)[:, None, None, None]
    flicker = config.flicker * u[1] * torch.sin(time * (0.3 + 0.25 * u[2]) + 3 * u[3])
    gain = torch.exp2(config.exposure * u[0] + flicker) * (1 + config.balance * u[4:7])
    ys = torch.linspace(-1, 1, height, device=rgb.device)[:, None]
    xs = torch.linspace(-1, 1, width, device=rgb.device)
    shading = 1 - config.vignette * u[7].abs() * 0.5 * (xs * xs + ys * ys)[..., None]
    image = (rgb * gain * shading).clamp(0, 1) ** torch.exp2(config.gamma * u[8])
    noise = torch.randn(rgb.shape, generator=generator, device=rgb.device)
    return (image + config.noise * u[9].abs() * noise).clamp(0, 1)
