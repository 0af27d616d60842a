"""MoRe4D networks of a few thousand parameters, and samples for them."""

from __future__ import annotations

from dataclasses import replace

import torch

from worldline.systems.more4d.config import MoRe4DConfig, PriorConfig, TextConfig, TransformerConfig, VaeConfig
from worldline.systems.more4d.samples import FillSamples, MotionSamples

PRIOR = PriorConfig(dim=12, depth=1, heads=2, image_size=16, patch=4, frames=2, decoder_dim=8, decoder_depth=1,
                    decoder_heads=2)  # fmt: skip
GENERATOR = TransformerConfig(heads=2, head_dim=12, layers=1, ffn_dim=32, in_channels=16, out_channels=4, text_dim=8,
                              image_dim=None, prior=PRIOR)  # fmt: skip
TINY = MoRe4DConfig(
    vae=VaeConfig(base_dim=4, widths=(1, 2, 2), z_dim=4, blocks=1, time_halvings=(False, True), adaptor_dim=8,
                  adaptor_groups=2),
    generator=GENERATOR,
    inpainter=replace(GENERATOR, in_channels=10, reference_tokens=False, prior=None),
    text=TextConfig(words=32, dim=8, layers=1, heads=2, length=6),
    size=(16, 24),
    frames=5,
)  # fmt: skip


def motion(count: int = 2, seed: int = 0) -> MotionSamples:
    g = torch.Generator().manual_seed(seed)
    moved = 0.3 * torch.randn(count, TINY.frames, *TINY.size, 3, generator=g)
    moved[:, 0] = 0
    return MotionSamples(
        image=torch.rand(count, *TINY.size, 3, generator=g),
        depth=1 + torch.rand(count, *TINY.size, generator=g),
        motion=moved,
        weight=torch.ones(count, TINY.frames, *TINY.size),
        captions=("a ball rolls",) * count,
    )


def fill(count: int = 2, seed: int = 0) -> FillSamples:
    g = torch.Generator().manual_seed(seed)
    video = torch.rand(count, TINY.frames, *TINY.size, 3, generator=g)
    known = torch.rand(count, TINY.frames, *TINY.size, generator=g) > 0.3
    return FillSamples(video=video, rendered=video * known[..., None], known=known, captions=("a ball",) * count)
