"""What texts and context pictures become before a transformer sees them: small encoders, and the published ones.

Texts go in as strings and come out as rows, zero after their end; a picture becomes the rows of CLIP's last but one
layer. The published encoders are transformers' models with a tokenizer beside them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from worldline.systems.more4d.config import TEXT_LENGTH, TextConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
GREY = 127 / 255
"""Value of the picture that the generator's image context was trained with (spec 2.3)."""


class WordEncoder(nn.Module):
    """A small transformer over hashed words, trained with the generator.

    Attributes:
        config: sizes.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.words, config.dim)
        self.places = nn.Parameter(torch.randn(config.length, config.dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 4 * config.dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def numbers(self, text: str) -> list[int]:
        """Number of each word, from 2 on; 1 begins every text, so that none is empty."""
        words = re.findall(r"[a-z0-9]+", text.lower())[: self.config.length - 1]
        return [1, *(2 + zlib.crc32(word.encode()) % (self.config.words - 2) for word in words)]

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "B L E"]:
        """Rows of texts, zero after the end of each."""
        ids = torch.zeros(len(texts), self.config.length, dtype=torch.long, device=self.places.device)
        for row, text in enumerate(texts):
            numbers = self.numbers(text)
            ids[row, : len(numbers)] = ids.new_tensor(numbers)
        nothing = ids == 0
        rows = self.layers(self.words(ids) + self.places, src_key_padding_mask=nothing)
        return rows * ~nothing[..., None]


class Umt5(nn.Module):
    """transformers' umT5-xxl encoder with its tokenizer; 512 rows, zero after the end of each text."""

    def __init__(self, encoder: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Float[Tensor, "B L E"]:
        """Rows of texts."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
        ).to(_device(self.encoder))
        rows = self.encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return rows * tokens.attention_mask[..., None].to(rows)


class ClipImages(nn.Module):
    """transformers' CLIP ViT-H/14: 257 rows of 1280 numbers, the output of 31 of its 32 layers."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K I"]:
        """Rows of pictures in [0, 1]."""
        square = functional.interpolate(images, (224, 224), mode="bicubic", align_corners=False)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        like = next(self.encoder.parameters())
        pixels = ((square - mean) / std).to(_device(self.encoder), like.dtype)
        return self.encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]

    def grey(self, size: tuple[int, int]) -> Float[Tensor, "1 K I"]:
        """The constant context of the generator."""
        return self(torch.full((1, 3, *size), GREY, device=_device(self.encoder)))


def _device(network: nn.Module) -> torch.device:
    """Where a network reads: in memory if its weights are not there yet, as hooks bring both to where it works."""
    device = next(network.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
