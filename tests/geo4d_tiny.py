"""The smallest Geo4D that has every part, for tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from worldline.scene import Video
from worldline.systems.geo4d.config import Geo4DConfig, UNetConfig, VaeConfig
from worldline.systems.geo4d.networks import Geo4D

SMALL_VAE = VaeConfig(channels=(8, 8), blocks=1, latent_channels=2, scaling_factor=0.7, norm_groups=4)
SMALL = Geo4DConfig(
    unet=UNetConfig(
        in_channels=10, out_channels=8, model_channels=8, channel_mult=(1, 1), num_res_blocks=1, attention_levels=(0,),
        head_channels=4, context_dim=6, text_tokens=3, image_tokens=2, dropout=0.0, norm_groups=4,
    ),
    vae=SMALL_VAE, point_vae=replace(SMALL_VAE, uncertainty=True), window=4, stride=2, steps=2, fps=None,
)  # fmt: skip


def live(model: Geo4D) -> Geo4D:
    """Networks start with zeroed residual branches, in which nothing could be told apart."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def video(count: int, size=(16, 24), seed: int = 0) -> Video:
    frames = torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(seed))
    return Video(frames=frames, timestamps=torch.arange(count, dtype=torch.float64) / 24)
