"""The constant context: one sentence and one grey picture through CLIP, then the query transformer (spec 1.3).

The published programs always use the same sentence and multiply the picture by zero, so what the U-Net attends to is
part of the checkpoint: 77 text tokens and 16 tokens for each of 16 frames. It is computed once, when a checkpoint is
converted. Module names are OpenCLIP's, so that its state dicts fit as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from worldline.systems.geo4d.config import ClipConfig, TowerConfig

PROMPT = "Output a video that assigns each 3D location in the world a consistent color."
_WORDS = (17255, 320, 1455, 682, 587, 4659, 2416, 274, 323, 4372, 530, 518, 1002, 320, 16439, 3140, 269)
PROMPT_TOKENS = (49406, *_WORDS, 49407)
"""PROMPT in CLIP's byte-pair code, with its begin and end marks."""

TEXT_LENGTH = 77
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Mlp(nn.Module):
    """C -> 4C -> C with an exact GELU."""

    def __init__(self, width: int):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Token by token."""
        return self.c_proj(nn.functional.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Pre-normalised attention and feed-forward layer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = Mlp(width)

    def forward(self, x: Float[Tensor, "B N C"], mask: Float[Tensor, "N N"] | None) -> Float[Tensor, "B N C"]:
        """Residual."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    """The blocks of one transformer."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))


class TextTower(nn.Module):
    """CLIP's text tower, read one block before its end."""

    def __init__(self, config: ClipConfig):
        """Build with empty weights."""
        super().__init__()
        width = config.text.width
        self.positional_embedding = nn.Parameter(torch.empty(TEXT_LENGTH, width))
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.transformer = Tower(config.text)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.embedding))
        self.logit_scale = nn.Parameter(torch.empty(()))

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """All tokens after the last block but one, normalised."""
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        for block in list(self.transformer.resblocks)[:-1]:
            x = block(x, mask)
        return self.ln_final(x)


class VisionTower(nn.Module):
    """CLIP's vision tower, all tokens before its last normalisation and projection."""

    def __init__(self, config: ClipConfig):
        """Build with empty weights."""
        super().__init__()
        width, patches = config.vision.width, (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(patches + 1, width))
        self.proj = nn.Parameter(torch.empty(width, config.embedding))
        self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Tower(config.vision)

    def forward(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        """Class token and patch tokens of pictures in CLIP's colours."""
        patches = self.conv1(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x = block(x, None)
        return x


def prompt_tokens() -> Int[Tensor, "1 77"]:
    """The sentence, padded with zeros."""
    tokens = torch.zeros(1, TEXT_LENGTH, dtype=torch.long)
    tokens[0, : len(PROMPT_TOKENS)] = torch.tensor(PROMPT_TOKENS)
    return tokens


def grey_picture(size: int) -> Float[Tensor, "1 3 H W"]:
    """Mid-grey (0 in [-1, 1]) in CLIP's colours: the same everywhere, so nothing needs to be resized."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return ((0.5 - mean) / std)[None, :, None, None].expand(1, 3, size, size)


@torch.inference_mode()
def constant_context(text: nn.Module, vision: nn.Module, resampler: nn.Module, image_size: int) -> Float[Tensor, "N D"]:
    """[77 text tokens | tokens of the grey picture], what the U-Net attends to for every video."""
    words = text(prompt_tokens())[0]
    image = resampler(vision(grey_picture(image_size)))[0]
    return torch.cat([words, image]).float().clone()
