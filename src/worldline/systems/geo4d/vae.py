"""Geo4D's autoencoders: one for images, rays and disparity, one for points with an uncertainty branch (paper eq. 3)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.vae import Decoder, DiagonalGaussianDistribution, Encoder
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

from worldline.systems.geo4d.config import VaeConfig


class UncertaintyBranch(nn.Module):
    """From the decoder's last features to one raw number per pixel; softplus of it is sigma, 1 / sigma the weight."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels=channels, temb_channels=None, groups=norm_groups, eps=1e-6)  # type: ignore[arg-type]
            for _ in range(2)
        )
        self.norm_out = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, features: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 1 H W"]:
        """Features before the decoder's final normalisation."""
        for resnet in self.resnets:
            features = resnet(features, None)
        return self.conv_out(nn.functional.silu(self.norm_out(features)))


class Geo4DVae(nn.Module):
    """A KL autoencoder of single pictures; the published file's names map to these by `published.vae_key`."""

    def __init__(self, config: VaeConfig | None = None):
        """Build with random weights."""
        super().__init__()
        self.config = config = config or VaeConfig()
        levels = len(config.channels)
        shared: dict[str, Any] = {"block_out_channels": config.channels, "norm_num_groups": config.norm_groups}
        self.encoder = Encoder(
            in_channels=3,
            out_channels=config.latent_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            layers_per_block=config.blocks,
            double_z=True,
            **shared,
        )
        self.decoder = Decoder(
            in_channels=config.latent_channels,
            out_channels=3,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=config.blocks,
            **shared,
        )
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.uncertainty = UncertaintyBranch(config.channels[0], config.norm_groups) if config.uncertainty else None

    @property
    def factor(self) -> int:
        """Pixels per latent pixel and side."""
        return 2 ** (len(self.config.channels) - 1)

    def encode(self, pictures: Float[Tensor, "N 3 H W"]) -> DiagonalGaussianDistribution:
        """Posterior of unscaled latents; multiply by `config.scaling_factor` for the U-Net."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(pictures)))

    def decode(self, latents: Float[Tensor, "N Z h w"]) -> Float[Tensor, "N 3 H W"]:
        """Pictures of unscaled latents, not clamped."""
        return self._head(self.features(latents))

    def decode_with_uncertainty(
        self, latents: Float[Tensor, "N Z h w"]
    ) -> tuple[Float[Tensor, "N 3 H W"], Float[Tensor, "N 1 H W"]]:
        """Pictures and the raw uncertainty beside them.

        Raises:
            ValueError: this autoencoder has no uncertainty branch.
        """
        if self.uncertainty is None:
            raise ValueError("This autoencoder has no uncertainty branch; points need the one that has.")
        features = self.features(latents)
        return self._head(features), self.uncertainty(features)

    def features(self, latents: Float[Tensor, "N Z h w"]) -> Float[Tensor, "N C H W"]:
        """What the decoder knows at full resolution, before its last normalisation."""
        hidden = self.decoder.mid_block(self.decoder.conv_in(self.post_quant_conv(latents)), None)
        for block in self.decoder.up_blocks:
            hidden = block(hidden, None)
        return hidden

    def _head(self, features: Tensor) -> Tensor:
        return self.decoder.conv_out(self.decoder.conv_act(self.decoder.conv_norm_out(features)))


def sigma_of(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Scale of the error a raw uncertainty stands for: softplus."""
    return nn.functional.softplus(raw)


def laplace_nll(
    predicted: Float[Tensor, "N 3 H W"], target: Float[Tensor, "N 3 H W"], raw: Float[Tensor, "N 1 H W"]
) -> Float[Tensor, "N 1 H W"]:
    """Negative log likelihood of a Laplace error (paper eq. 3): ln(sqrt2 sigma) + sqrt2 |error| / sigma."""
    sigma = sigma_of(raw).clamp(min=1e-6)
    error = torch.linalg.vector_norm(predicted - target, dim=1, keepdim=True)
    return (2**0.5 * sigma).log() + 2**0.5 * error / sigma
