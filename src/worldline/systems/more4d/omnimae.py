"""OmniMAE: a masked autoencoder whose encoder says what in a picture may move (spec 2.2, "MPM data path").

A picture is a clip of two equal frames: patches of 2x16x16, a table of sinusoids for their places, pre-norm blocks.
Names of parameters are those of the published file.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from worldline.systems.more4d.config import PriorConfig

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def sinusoids(rows: int, dim: int) -> Float[Tensor, "rows dim"]:
    """Even columns sin, odd columns cos of row / 10000^(2 (column // 2) / dim)."""
    column = torch.arange(dim, dtype=torch.float64, device="cpu")
    angle = torch.arange(rows, dtype=torch.float64, device="cpu")[:, None] / 10000 ** (2 * (column // 2) / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = _Attention(dim, heads, bias), _Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Patches(nn.Module):
    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        size = (config.patch_frames, config.patch, config.patch)
        self.proj = nn.Sequential(nn.Identity(), nn.Conv3d(3, config.dim, size, size))

    def forward(self, clip: Tensor) -> Tensor:
        return self.proj(clip).flatten(2).transpose(1, 2)


class _Decoder(nn.Module):
    """Guesses the patches that were hidden."""

    pos_embed: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.register_buffer("pos_embed", sinusoids(config.positions, config.dim)[None].to(_default_device()))
        self.decoder_embed = nn.Linear(config.dim, dim)
        self.decoder_blocks = nn.ModuleList(
            [_Block(dim, config.decoder_heads, bias=False) for _ in range(config.decoder_depth)]
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.decoder_embed(tokens + self.pos_embed[:, : tokens.shape[1]])
        for block in self.decoder_blocks:
            x = block(x)
        return self.norm(x)


class Trunk(nn.Module):
    """The encoder."""

    pos_embed: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, config.dim))
        self.register_buffer("pos_embed", sinusoids(config.positions, config.dim)[None].to(_default_device()))
        self.patch_embed = _Patches(config)
        self.blocks = nn.ModuleList([_Block(config.dim, config.heads, bias=True) for _ in range(config.depth)])
        self.decoder = _Decoder(config) if config.decoder_depth else None
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(self, clip: Tensor, kept: Tensor | None = None) -> Tensor:
        """Tokens of the patches of a normalised clip; `kept` [B, K] chooses some of them."""
        tokens = self.patch_embed(clip)
        tokens = tokens + self.pos_embed[:, : tokens.shape[1]].to(tokens)
        if kept is not None:
            tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class OmniMae(nn.Module):
    """Features of pictures, and the masked training that gives them.

    Attributes:
        config: sizes.
        trunk: the encoder (and inside it the decoder, as in the published file).
        head: pixels of a patch; None without a decoder.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        pixels = config.patch_frames * config.patch**2 * 3
        self.head = nn.Linear(config.decoder_dim, pixels) if config.decoder_depth else None

    def clip(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 F S S"]:
        """Images in [0, 1] as the clip of equal frames that the encoder reads."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        side = self.config.image_size
        square = functional.interpolate((images - mean) / std, (side, side), mode="bilinear", align_corners=False)
        return square[:, :, None].expand(-1, -1, self.config.patch_frames, -1, -1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Features of images in [0, 1], one row per patch, row by row."""
        return self.trunk(self.clip(images))

    def guess(
        self, images: Float[Tensor, "B 3 H W"], hidden: float, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B N P"], Float[Tensor, "B N P"], Bool[Tensor, "B N"]]:
        """Guessed and true pixels of all patches (each patch normalised), and which of them were hidden.

        Raises:
            ValueError: the decoder was left out.
        """
        if self.trunk.decoder is None or self.head is None:
            raise ValueError("This motion prior has no decoder; build it with decoder_depth > 0 to train it.")
        clip, count = self.clip(images), self.config.side**2
        order = torch.rand(len(images), count, generator=generator, device=images.device).argsort(1)
        kept = order[:, : max(1, round((1 - hidden) * count))]
        tokens = self.trunk.mask_token.expand(len(images), count, -1)
        seen = self.trunk(clip, kept)
        tokens = tokens.to(seen).scatter(1, kept[..., None].expand_as(seen), seen)
        mask = torch.ones_like(order, dtype=torch.bool).scatter(1, kept, False)
        target = _pixels(clip, self.config)
        spread = target.var(-1, keepdim=True) + 1e-6
        return self.head(self.trunk.decoder(tokens)), (target - target.mean(-1, keepdim=True)) / spread.sqrt(), mask


def _pixels(clip: Tensor, config: PriorConfig) -> Tensor:
    """Pixels of each patch, [B, N, frames * patch * patch * 3]."""
    side, patch = config.side, config.patch
    parts = clip.unflatten(-1, (side, patch)).unflatten(-3, (side, patch))  # B 3 F h p w p
    return parts.permute(0, 3, 5, 2, 4, 6, 1).flatten(3).flatten(1, 2)


def _default_device() -> torch.device:
    """Where tensors are created now: the meta device under `with torch.device("meta")`."""
    return torch.empty(0).device
