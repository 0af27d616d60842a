"""The query transformer: learned queries gather image tokens into context tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldline.systems.geo4d.config import ResamplerConfig


class PerceiverAttention(nn.Module):
    """Queries attend to the image tokens and to themselves; softmax in float32."""

    def __init__(self, dim: int, heads: int, head_channels: int):
        super().__init__()
        inner = heads * head_channels
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: Float[Tensor, "B N C"], latents: Float[Tensor, "B Q C"]) -> Float[Tensor, "B Q C"]:
        """What the latents gather."""
        latents = self.norm2(latents)
        query = self.to_q(latents)
        key, value = self.to_kv(torch.cat([self.norm1(tokens), latents], dim=1)).chunk(2, dim=-1)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        scale = query.shape[-1] ** -0.25  # on each side, so that half precision does not overflow
        weights = ((query * scale) @ (key * scale).transpose(-1, -2)).float().softmax(dim=-1).to(value.dtype)
        return self.to_out((weights @ value).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """Attribute names are those of the published checkpoint (`image_proj_model`)."""

    def __init__(self, config: ResamplerConfig | None = None):
        """Build with random weights."""
        super().__init__()
        self.config = config = config or ResamplerConfig()
        self.latents = nn.Parameter(torch.randn(1, config.queries * config.frames, config.dim) / config.dim**0.5)
        self.proj_in = nn.Linear(config.embedding_dim, config.dim)
        self.proj_out = nn.Linear(config.dim, config.output_dim)
        self.norm_out = nn.LayerNorm(config.output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(config.dim, config.heads, config.head_channels),
                    nn.Sequential(
                        nn.LayerNorm(config.dim),
                        nn.Linear(config.dim, config.ff_mult * config.dim, bias=False),
                        nn.GELU(),
                        nn.Linear(config.ff_mult * config.dim, config.dim, bias=False),
                    ),
                ]
            )
            for _ in range(config.depth)
        )

    def forward(self, tokens: Float[Tensor, "B *T N E"]) -> Float[Tensor, "B Q D"]:
        """Context tokens, frame by frame.

        Args:
            tokens: image tokens of one picture for the whole clip [B, N, E] (as released: all queries look at it
                together), or of every frame [B, T, N, E] (each frame's queries look at their own).
        """
        batch = len(tokens)
        latents = self.latents.expand(batch, -1, -1)
        if tokens.ndim == 4:
            latents = latents.unflatten(1, (tokens.shape[1], -1)).flatten(0, 1)
            tokens = tokens.flatten(0, 1)
        tokens = self.proj_in(tokens)
        for attention, feed_forward in cast(Iterable[tuple[nn.Module, nn.Module]], self.layers):
            latents = latents + attention(tokens, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents)).reshape(batch, -1, self.config.output_dim)
