"""Attention of Geo4D's U-Net: over pixels with text and image context, and over time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.models.attention import FeedForward
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

# Shapes: B batch, T frames, C channels, N tokens (pixels of one frame, or times), D context channels.


class Context(NamedTuple):
    """Tokens the pixels attend to: `text` [B, 77, D] for all frames, `image` [B*T, 16, D] frame by frame."""

    text: Tensor
    image: Tensor


class KeysValues(NamedTuple):
    """One layer's keys and values of a context, computed once because the context never changes."""

    text: tuple[Tensor, Tensor]
    image: tuple[Tensor, Tensor]


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, ...]."""
        return super().forward(x.float()).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention; with `image_context`, a second softmax over image tokens is added to the first."""

    def __init__(
        self, channels: int, head_channels: int, context_dim: int | None = None, *, image_context: bool = False
    ):
        super().__init__()
        source = context_dim or channels
        self.heads = channels // head_channels
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(source, channels, bias=False)
        self.to_v = nn.Linear(source, channels, bias=False)
        if image_context:
            self.to_k_ip = nn.Linear(source, channels, bias=False)
            self.to_v_ip = nn.Linear(source, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, N, C] -> [B, heads, N, C / heads]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def keys_values(self, context: Context) -> KeysValues:
        """Keys and values of a constant context."""
        return KeysValues(
            text=(self._split(self.to_k(context.text)), self._split(self.to_v(context.text))),
            image=(self._split(self.to_k_ip(context.image)), self._split(self.to_v_ip(context.image))),
        )

    def forward(self, x: Float[Tensor, "B N C"], context: KeysValues | None = None) -> Float[Tensor, "B N C"]:
        """Self-attention, or attention to the context."""
        query = self._split(self.to_q(x))
        if context is None:
            return self.to_out[0](self._attend(query, self._split(self.to_k(x)), self._split(self.to_v(x))))
        frames = len(query) // len(context.text[0])
        key, value = (entry.repeat_interleave(frames, dim=0) for entry in context.text)
        return self.to_out[0](self._attend(query, key, value) + self._attend(query, *context.image))


class TransformerBlock(nn.Module):
    """x += attn1(x); x += attn2(x, context); x += GEGLU(x), each of the layer-normalised x."""

    def __init__(self, channels: int, head_channels: int, context_dim: int | None):
        super().__init__()
        self.attn1 = Attention(channels, head_channels)
        self.ff = FeedForward(channels, activation_fn="geglu")
        self.attn2 = Attention(channels, head_channels, context_dim, image_context=context_dim is not None)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Float[Tensor, "B N C"], context: KeysValues | None = None) -> Float[Tensor, "B N C"]:
        """Without context, the second attention is self-attention too."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Attention over the pixels of each frame and to the context."""

    def __init__(self, channels: int, head_channels: int, context_dim: int, norm_groups: int):
        super().__init__()
        self.norm = GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, head_channels, context_dim)])
        self.proj_out = zero(nn.Linear(channels, channels))

    @property
    def cross_attention(self) -> Attention:
        """The layer that attends to the context."""
        block = self.transformer_blocks[0]
        assert isinstance(block, TransformerBlock)
        return block.attn2

    def forward(self, x: Float[Tensor, "BT C h w"], context: KeysValues) -> Float[Tensor, "BT C h w"]:
        """Residual."""
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # [BT, hw, C]
        tokens = self.proj_out(self.transformer_blocks[0](tokens, context))
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[-2:])


class TemporalTransformer(nn.Module):
    """Attention over the times of each pixel; no position code and no mask, statistics of the norm over the clip."""

    def __init__(self, channels: int, head_channels: int, norm_groups: int, *, inner: int | None = None):
        """With `inner`, projections to that width are 1-wide convolutions (the block at the network's entrance)."""
        super().__init__()
        self.norm = GroupNorm(norm_groups, channels, eps=1e-6)
        self.convolutional = inner is not None
        width = inner or channels
        self.proj_in = nn.Conv1d(channels, width, 1) if inner else nn.Linear(channels, width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, head_channels, None)])
        self.proj_out = zero(nn.Conv1d(width, channels, 1) if inner else nn.Linear(width, channels))

    def _project(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        return layer(tokens.transpose(1, 2)).transpose(1, 2) if self.convolutional else layer(tokens)

    def forward(self, x: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B C T h w"]:
        """Residual."""
        batch, _, _, height, width = x.shape
        tokens = self.norm(x).permute(0, 3, 4, 2, 1).flatten(0, 2)  # [Bhw, T, C]
        tokens = self._project(self.proj_out, self.transformer_blocks[0](self._project(self.proj_in, tokens)))
        return x + tokens.unflatten(0, (batch, height, width)).permute(0, 4, 3, 1, 2)


def zero(module: nn.Module) -> nn.Module:
    """Start a residual branch at zero, so that it changes nothing before it has learned something."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module
