"""Names in the published checkpoints, and what they are called here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from worldline.systems.geo4d.config import VaeConfig

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


def unet_key_of(name: str) -> str:
    """The published key of one of our U-Net's parameters."""
    return name.replace("temporal_conv", "temopral_conv")


def vae_table(ours: Mapping[str, tuple[int, ...]], config: VaeConfig) -> dict[str, tuple[int, ...]]:
    """Published keys and shapes of an autoencoder with both adaptors, from the shapes of ours.

    `ours` must have the uncertainty branch. Every published key is listed and brought to our name, so that the table
    and `vae_key` cannot disagree.
    """
    levels, width = len(config.channels), config.channels[0]
    table = {}
    for key in _vae_keys(levels, config.blocks):
        name = vae_key(key, levels)
        if name is None:
            table[key] = _adaptor_shape(key, width)
        elif name in ours:
            matrix = ".attn_1." in key and len(ours[name]) == 2
            table[key] = (*ours[name], 1, 1) if matrix else tuple(ours[name])
    return table


def _vae_keys(levels: int, blocks: int) -> list[str]:
    """Every key an autoencoder of this depth can have; shortcuts are there only where channels change."""
    resnets = [f"encoder.down.{i}.block.{j}." for i in range(levels) for j in range(blocks)]
    resnets += [f"decoder.up.{i}.block.{j}." for i in range(levels) for j in range(blocks + 1)]
    resnets += [f"{half}.mid.block_{j}." for half in ("encoder", "decoder") for j in (1, 2)]
    resnets += [f"decoder_adaptor.up.0.block.{j}." for j in range(2)]
    names = [key + part for key in resnets for part in ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")]
    names += [f"encoder_adaptor.down.0.block.0.{part}" for part in ("norm1", "conv1", "norm2", "conv2")]
    names += [f"encoder.down.{i}.downsample.conv" for i in range(levels - 1)]
    names += [f"decoder.up.{i}.upsample.conv" for i in range(1, levels)]
    names += [f"{half}.mid.attn_1.{p}" for half in ("encoder", "decoder") for p in ("norm", "q", "k", "v", "proj_out")]
    names += [
        f"{half}.{p}" for half in ("encoder", "decoder", "encoder_adaptor") for p in ("conv_in", "norm_out", "conv_out")
    ]
    names += ["quant_conv", "post_quant_conv", "decoder_adaptor.norm_out", "decoder_adaptor.conv_out"]
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def _adaptor_shape(key: str, width: int) -> tuple[int, ...]:
    """Shapes of the input adaptor: 3 -> width, one residual block, width -> 3."""
    out = 3 if ".conv_out." in key else width
    if key.endswith("bias") or "norm" in key:
        return (out,)
    return (out, 3 if ".conv_in." in key else width, 3, 3)
