"""A real camera's failings, off unless asked for: motion blur, exposure, colour, vignetting, noise, compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data.synthetic.lens import compress, motion_blur


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
        shutter: share of the time between two frames during which the shutter is open.
        compression: quantisation step of `lens.compress`.
    """

    exposure: float = 0.7
    flicker: float = 0.15
    balance: float = 0.12
    vignette: float = 0.35
    gamma: float = 0.35
    noise: float = 0.03
    shutter: float = 0.0
    compression: float = 0.0

    @classmethod
    def video(cls) -> SensorConfig:
        """All of a hand-held video: what training that has to transfer to real footage should see."""
        return cls(shutter=0.6, compression=0.12)


def expose(
    rgb: Float[Tensor, "B T H W 3"],
    seeds: Sequence[int],
    config: SensorConfig,
    velocity: Float[Tensor, "B T H W 2"] | None = None,
) -> Float[Tensor, "B T H W 3"]:
    """What a real camera would record of perfect images in [0, 1]; each clip by its own seed.

    Args:
        rgb: perfect images.
        seeds: one per clip.
        config: how bad the camera is.
        velocity: image motion in pixels per frame, for the motion blur.

    Raises:
        ValueError: motion blur without a velocity.
    """
    if config.shutter > 0 and velocity is None:
        raise ValueError("Motion blur needs the image velocity; give it, or set SensorConfig.shutter to 0.")
    speeds = [None] * len(rgb) if velocity is None else velocity
    return torch.stack([_expose_one(*clip, config) for clip in zip(rgb, seeds, speeds, strict=True)])


def _expose_one(rgb: Tensor, seed: int, velocity: Tensor | None, config: SensorConfig) -> Tensor:
    frames, height, width = rgb.shape[:3]
    generator = torch.Generator(rgb.device).manual_seed((int(seed) * 2654435761 + 12345) % (1 << 63))
    u = torch.rand(12, generator=generator, device=rgb.device) * 2 - 1
    if velocity is not None:
        rgb = motion_blur(rgb, velocity, config.shutter * float(u[10].abs()))
    time = torch.arange(frames, device=rgb.device)[:, None, None, None]
    flicker = config.flicker * u[1] * torch.sin(time * (0.3 + 0.25 * u[2]) + 3 * u[3])
    gain = torch.exp2(config.exposure * u[0] + flicker) * (1 + config.balance * u[4:7])
    ys = torch.linspace(-1, 1, height, device=rgb.device)[:, None]
    xs = torch.linspace(-1, 1, width, device=rgb.device)
    shading = 1 - config.vignette * u[7].abs() * 0.5 * (xs * xs + ys * ys)[..., None]
    image = (rgb * gain * shading).clamp(0, 1) ** torch.exp2(config.gamma * u[8])
    noise = torch.randn(rgb.shape, generator=generator, device=rgb.device)
    return compress((image + config.noise * u[9].abs() * noise).clamp(0, 1), config.compression * float(u[11].abs()))
