"""Names in the published checkpoints, and what they are called here."""

from __future__ import annotations

import re

from torch import Tensor

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
POINT_VAE_PREFIX = "model."
RESAMPLER_PREFIX = "image_proj_model."
TEXT_PREFIX = "cond_stage_model.model."
IMAGE_PREFIX = "embedder.model.visual."
DEEPSPEED_PREFIX = "_forward_module."


def unet_key(key: str) -> str:
    """A U-Net key without its prefix: one misspelt word, and an older name of the frame-rate embedding."""
    return key.replace("temopral_conv", "temporal_conv").replace("framestride_embed", "fps_embedding")


def vae_key(key: str, levels: int) -> str | None:
    """An autoencoder key without its prefix; None for the input adaptor, which no released program uses.

    The published decoder counts levels from the highest resolution, ours in the order they are run.
    """
    if key.startswith("encoder_adaptor."):
        return None
    key = re.sub(r"^decoder_adaptor\.up\.0\.block\.(\d)\.", r"uncertainty.resnets.\1.", key)
    key = re.sub(r"^decoder_adaptor\.", "uncertainty.", key)
    key = re.sub(r"^encoder\.down\.(\d)\.block\.(\d)\.", r"encoder.down_blocks.\1.resnets.\2.", key)
    key = re.sub(r"^encoder\.down\.(\d)\.downsample\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv.", key)
    up = re.match(r"^decoder\.up\.(\d)\.(.*)$", key)
    if up:
        rest = re.sub(r"^block\.(\d)\.", r"resnets.\1.", up[2]).replace("upsample.conv.", "upsamplers.0.conv.")
        key = f"decoder.up_blocks.{levels - 1 - int(up[1])}.{rest}"
    key = re.sub(r"\.mid\.block_(\d)\.", lambda match: f".mid_block.resnets.{int(match[1]) - 1}.", key)
    if ".mid.attn_1." in key:
        key = key.replace(".mid.attn_1.", ".mid_block.attentions.0.")
        for ours, theirs in (("group_norm.", "norm."), ("to_out.0.", "proj_out.")):
            key = key.replace(f"attentions.0.{theirs}", f"attentions.0.{ours}")
        key = re.sub(r"attentions\.0\.([qkv])\.", r"attentions.0.to_\1.", key)
    key = key.replace("nin_shortcut", "conv_shortcut")
    return re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", key)


def vae_value(key: str, value: Tensor) -> Tensor:
    """Attention weights are 1x1 convolutions in the file and matrices here."""
    return value.flatten(1) if ".attentions.0." in key and value.ndim == 4 else value
