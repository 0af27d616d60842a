"""Geo4D's video U-Net: 16 noisy latent channels and 4 of the video in, v of the 16 out (paper section 3.2)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from worldline.systems.geo4d.attention import (
    Context,
    GroupNorm,
    KeysValues,
    SpatialTransformer,
    TemporalTransformer,
    zero,
)
from worldline.systems.geo4d.config import UNetConfig

# Shapes: B batch, T frames, C channels, h w latent pixels; spatial layers see [BT, C, h, w] with time running fastest.


def sinusoid(value: Float[Tensor, " B"] | Int[Tensor, " B"], channels: int) -> Float[Tensor, "B channels"]:
    """Cos and sin of a number at `channels / 2` frequencies from 1 to 1e-4; cos first."""
    half = channels // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=value.device, dtype=torch.float32) / half)
    angle = value.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def embedding_mlp(channels: int) -> nn.Sequential:
    """C -> 4C -> 4C."""
    return nn.Sequential(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))


class TemporalConvolutions(nn.Module):
    """x plus four convolutions over time, the last one starting at zero."""

    conv1: nn.Sequential
    conv2: nn.Sequential
    conv3: nn.Sequential
    conv4: nn.Sequential

    def __init__(self, channels: int, dropout: float, norm_groups: int):
        super().__init__()
        for index in range(1, 5):
            layers: list[nn.Module] = [GroupNorm(norm_groups, channels), nn.SiLU()]
            layers += [nn.Dropout(dropout)] if index > 1 else []
            conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            layers.append(zero(conv) if index == 4 else conv)
            self.add_module(f"conv{index}", nn.Sequential(*layers))

    def forward(self, x: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B C T h w"]:
        """Residual."""
        return x + self.conv4(self.conv3(self.conv2(self.conv1(x))))


class ResBlock(nn.Module):
    """Two convolutions of each frame with the time embedding between them, then convolutions over time."""

    def __init__(self, source: int, channels: int, embedding: int, config: UNetConfig):
        super().__init__()
        groups = config.norm_groups
        self.in_layers = nn.Sequential(GroupNorm(groups, source), nn.SiLU(), nn.Conv2d(source, channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, channels))
        self.out_layers = nn.Sequential(
            GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            zero(nn.Conv2d(channels, channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if source == channels else nn.Conv2d(source, channels, 1)
        self.temporal_conv = TemporalConvolutions(channels, config.dropout, groups)

    def forward(
        self, x: Float[Tensor, "BT C h w"], embedding: Float[Tensor, "BT E"], batch: int
    ) -> Float[Tensor, "BT D h w"]:
        """Source channels to this block's channels."""
        hidden = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        hidden = self.skip_connection(x) + self.out_layers(hidden)
        return over_time(self.temporal_conv, hidden, batch)


class Down(nn.Module):
    """Half the size, by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "BT C h w"]) -> Float[Tensor, "BT C h2 w2"]:
        """[h, w] -> [h / 2, w / 2]."""
        return self.op(x)


class Up(nn.Module):
    """Twice the size: nearest neighbours, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "BT C h w"]) -> Float[Tensor, "BT C h2 w2"]:
        """[h, w] -> [2h, 2w]."""
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))


def over_time(layer: nn.Module, x: Float[Tensor, "BT C h w"], batch: int) -> Float[Tensor, "BT C h w"]:
    """Apply a layer of clips [B, C, T, h, w] to frames [BT, C, h, w]."""
    clip = layer(x.unflatten(0, (batch, -1)).transpose(1, 2))
    return clip.transpose(1, 2).flatten(0, 1)


class Geo4DUNet(nn.Module):
    """The network; attribute names are those of the published checkpoint."""

    def __init__(self, config: UNetConfig | None = None):
        """Build with random weights; residual branches start at zero."""
        super().__init__()
        self.config = config = config or UNetConfig()
        self.gradient_checkpointing = False
        width, embedding = config.model_channels, 4 * config.model_channels
        self.time_embed, self.fps_embedding = embedding_mlp(width), embedding_mlp(width)
        zero(self.fps_embedding[-1])
        self.init_attn = nn.ModuleList(
            [TemporalTransformer(width, config.head_channels, config.norm_groups, inner=8 * config.head_channels)]
        )
        self.input_blocks, skips = self._encoder()
        channels = skips[-1]
        self.middle_block = nn.ModuleList(
            [ResBlock(channels, channels, embedding, config), *self._attention(channels)]
            + [ResBlock(channels, channels, embedding, config)]
        )
        self.output_blocks = self._decoder(channels, skips)
        self.out = nn.Sequential(
            GroupNorm(config.norm_groups, width),
            nn.SiLU(),
            zero(nn.Conv2d(width, config.out_channels, 3, padding=1)),
        )

    def _attention(self, channels: int) -> list[nn.Module]:
        config = self.config
        return [
            SpatialTransformer(channels, config.head_channels, config.context_dim, config.norm_groups),
            TemporalTransformer(channels, config.head_channels, config.norm_groups),
        ]

    def _encoder(self) -> tuple[nn.ModuleList, list[int]]:
        config = self.config
        width = config.model_channels
        blocks = [nn.ModuleList([nn.Conv2d(config.in_channels, width, 3, padding=1)])]
        channels, skips = width, [width]
        for level, multiple in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(channels, multiple * width, 4 * width, config)]
                channels = multiple * width
                layers += self._attention(channels) if level in config.attention_levels else []
                blocks.append(nn.ModuleList(layers))
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                blocks.append(nn.ModuleList([Down(channels)]))
                skips.append(channels)
        return nn.ModuleList(blocks), skips

    def _decoder(self, channels: int, skips: list[int]) -> nn.ModuleList:
        config = self.config
        width, blocks, left = config.model_channels, [], list(skips)
        for level, multiple in reversed(list(enumerate(config.channel_mult))):
            for index in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [ResBlock(channels + left.pop(), multiple * width, 4 * width, config)]
                channels = multiple * width
                layers += self._attention(channels) if level in config.attention_levels else []
                layers += [Up(channels)] if level > 0 and index == config.num_res_blocks else []
                blocks.append(nn.ModuleList(layers))
        return nn.ModuleList(blocks)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.parameters()).dtype

    def split_context(self, context: Float[Tensor, "B N D"], frames: int) -> Context:
        """Text tokens for all frames, then each frame's own image tokens; N = text + image tokens * frames."""
        text, image = context.split([self.config.text_tokens, context.shape[1] - self.config.text_tokens], dim=1)
        if image.shape[1] != self.config.image_tokens * frames:
            raise ValueError(
                f"{image.shape[1]} image tokens do not give {frames} frames {self.config.image_tokens} each; "
                f"pad the clip to {image.shape[1] // self.config.image_tokens} frames."
            )
        return Context(text=text, image=image.unflatten(1, (frames, -1)).flatten(0, 1))

    def context_cache(self, context: Float[Tensor, "B N D"], frames: int) -> list[KeysValues]:
        """Keys and values of every layer that attends to the context, in order of use."""
        split = self.split_context(context, frames)
        layers = [module for module in self.modules() if isinstance(module, SpatialTransformer)]
        return [layer.cross_attention.keys_values(split) for layer in layers]

    def forward(
        self,
        x: Float[Tensor, "B C T h w"],
        timestep: Int[Tensor, " B"] | Float[Tensor, " B"],
        context: Float[Tensor, "B N D"] | list[KeysValues],
        fps: Int[Tensor, " B"] | Float[Tensor, " B"],
    ) -> Float[Tensor, "B V T h w"]:
        """Predict v.

        Args:
            x: noisy latents of the modalities, then the latent of the video.
            timestep: of the diffusion, 0..999.
            context: text and image tokens, or `context_cache` of them.
            fps: frames per second of the clip.

        Raises:
            ValueError: h or w is no multiple of `config.multiple`, or the context does not fit T.
        """
        batch, _, frames, height, width = x.shape
        if height % self.config.multiple or width % self.config.multiple:
            raise ValueError(
                f"Latents of {height}x{width} must be multiples of {self.config.multiple}; pad the frames."
            )
        cache = iter(context if isinstance(context, list) else self.context_cache(context, frames))
        dtype = self.dtype
        embedding = self.time_embed(sinusoid(timestep, self.config.model_channels).to(dtype))
        embedding = embedding + self.fps_embedding(sinusoid(fps, self.config.model_channels).to(dtype))
        embedding = embedding.repeat_interleave(frames, dim=0)
        hidden, skips = x.to(dtype).transpose(1, 2).flatten(0, 1), []
        for index, block in enumerate(self.input_blocks):
            hidden = self._block(block, hidden, embedding, cache, batch)
            if index == 0:
                hidden = over_time(self.init_attn[0], hidden, batch)
            skips.append(hidden)
        hidden = self._block(self.middle_block, hidden, embedding, cache, batch)
        for block in self.output_blocks:
            hidden = self._block(block, torch.cat([hidden, skips.pop()], dim=1), embedding, cache, batch)
        return self.out(hidden).unflatten(0, (batch, frames)).transpose(1, 2)

    def _block(self, layers, hidden, embedding, cache, batch):
        for layer in layers:
            if isinstance(layer, ResBlock):
                hidden = self._run(layer, hidden, embedding, batch)
            elif isinstance(layer, SpatialTransformer):
                hidden = self._run(layer, hidden, next(cache))
            elif isinstance(layer, TemporalTransformer):
                hidden = self._run(over_time, layer, hidden, batch)
            else:
                hidden = layer(hidden)
        return hidden

    def _run(self, layer, *inputs):
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)
