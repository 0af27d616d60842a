"""Names in the published files, and what they are called here (spec 6; both directions are checked against its tables).

4D-STraG, 4D-ViSM   original Wan layout    -> diffusers WanTransformer3DModel, additions keep their names
VAE                 Wan2.1_VAE.pth         -> diffusers AutoencoderKLWan
text                models_t5_umt5-xxl     -> transformers UMT5EncoderModel
image               CLIP ViT-H/14, visual  -> transformers CLIPVisionModel
"""

from __future__ import annotations

import re

from torch import Tensor

_TRANSFORMER = (
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("img_emb.proj.0.", "condition_embedder.image_embedder.norm1."),
    ("img_emb.proj.1.", "condition_embedder.image_embedder.ff.net.0.proj."),
    ("img_emb.proj.3.", "condition_embedder.image_embedder.ff.net.2."),
    ("img_emb.proj.4.", "condition_embedder.image_embedder.norm2."),
    ("head.modulation", "scale_shift_table"),
    ("head.head.", "proj_out."),
)
_BLOCK = (
    ("modulation", "scale_shift_table"),
    ("norm3.", "norm2."),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    *(
        (f"{theirs}.{a}.", f"{ours}.{b}.")
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for a, b in (
            ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"),
            ("norm_q", "norm_q"), ("norm_k", "norm_k"),
            ("k_img", "add_k_proj"), ("v_img", "add_v_proj"), ("norm_k_img", "norm_added_k"),
        )
    ),
)  # fmt: skip


def _renamed(key: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for theirs, ours in pairs:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def transformer_key(key: str) -> str:
    """Our name of a published transformer parameter; additions to the stock model keep theirs."""
    block = re.match(r"^(blocks\.\d+\.)(.*)$", key)
    return block[1] + _renamed(block[2], _BLOCK) if block else _renamed(key, _TRANSFORMER)


def published_transformer_key(key: str) -> str:
    """The inverse of `transformer_key`."""
    swapped = [tuple((ours, theirs) for theirs, ours in pairs) for pairs in (_BLOCK, _TRANSFORMER)]
    block = re.match(r"^(blocks\.\d+\.)(.*)$", key)
    return block[1] + _renamed(block[2], swapped[0]) if block else _renamed(key, swapped[1])


_RESIDUAL = {"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}


def vae_key(key: str, blocks: int = 2) -> str:
    """Our name of a Wan VAE parameter; the saved trajectory VAE puts "model." in front.

    `blocks` are the residual blocks per level of the encoder; the decoder has one more.
    """
    key = key.removeprefix("model.")
    if key.startswith(("conv1.", "conv2.")):
        return ("quant_conv." if key.startswith("conv1.") else "post_quant_conv.") + key[6:]
    key = re.sub(r"^(encoder|decoder)\.conv1\.", r"\1.conv_in.", key)
    key = key.replace(".head.0.", ".norm_out.").replace(".head.2.", ".conv_out.")
    key = re.sub(r"\.middle\.(\d)\.", lambda match: f".mid_block.{_MIDDLE[match[1]]}.", key)
    key = re.sub(r"\.residual\.(\d)\.", lambda match: f".{_RESIDUAL[match[1]]}.", key)
    key = key.replace(".shortcut.", ".conv_shortcut.").replace("encoder.downsamples.", "encoder.down_blocks.")
    up = re.match(r"^decoder\.upsamples\.(\d+)\.(.*)$", key)
    if up:
        level, place = divmod(int(up[1]), blocks + 2)
        part = "upsamplers.0" if place == blocks + 1 else f"resnets.{place}"
        key = f"decoder.up_blocks.{level}.{part}.{up[2]}"
    return key


_TEXT = (
    ("norm1.", "layer.0.layer_norm."),
    ("attn.", "layer.0.SelfAttention."),
    ("pos_embedding.embedding.", "layer.0.SelfAttention.relative_attention_bias."),
    ("norm2.", "layer.1.layer_norm."),
    ("ffn.gate.0.", "layer.1.DenseReluDense.wi_0."),
    ("ffn.fc1.", "layer.1.DenseReluDense.wi_1."),
    ("ffn.fc2.", "layer.1.DenseReluDense.wo."),
)


def text_key(key: str) -> str:
    """umT5's name in transformers; `encoder.embed_tokens` is tied to `shared` there."""
    block = re.match(r"^blocks\.(\d+)\.(.*)$", key)
    if block:
        return f"encoder.block.{block[1]}.{_renamed(block[2], _TEXT)}"
    return _renamed(key, (("token_embedding.", "shared."), ("norm.", "encoder.final_layer_norm.")))


_IMAGE = (
    ("patch_embedding.", "embeddings.patch_embedding."),
    ("cls_embedding", "embeddings.class_embedding"),
    ("pos_embedding", "embeddings.position_embedding.weight"),
    ("pre_norm.", "pre_layrnorm."),
    ("post_norm.", "post_layernorm."),
)
_LAYER = (
    ("norm1.", "layer_norm1."),
    ("norm2.", "layer_norm2."),
    ("attn.proj.", "self_attn.out_proj."),
    ("mlp.0.", "mlp.fc1."),
    ("mlp.2.", "mlp.fc2."),
)


def image_keys(key: str) -> tuple[str, ...]:
    """CLIP's names in transformers: none for what is not used (text, head), three for a fused attention input."""
    if not key.startswith("visual.") or key == "visual.head":
        return ()
    key = key.removeprefix("visual.")
    layer = re.match(r"^transformer\.(\d+)\.(.*)$", key)
    if not layer:
        return (_renamed(key, _IMAGE),)
    start = f"encoder.layers.{layer[1]}."
    if layer[2].startswith("attn.to_qkv."):
        return tuple(f"{start}self_attn.{part}_proj.{layer[2][12:]}" for part in "qkv")
    return (start + _renamed(layer[2], _LAYER),)


def image_tensors(key: str, value: Tensor) -> dict[str, Tensor]:
    """A CLIP tensor under our names and in our shapes; empty for what is not used."""
    names = image_keys(key)
    if len(names) == 3:
        return dict(zip(names, value.chunk(3), strict=True))
    if names and names[0].endswith("class_embedding"):
        value = value.flatten()
    if names and names[0].endswith("position_embedding.weight"):
        value = value[0]
    return dict.fromkeys(names, value)


def trajectory_key(key: str, encoder: bool) -> str:
    """Our name inside `MotionVae` of a parameter in `encoder_prompt` or `decoder_prompt`."""
    return ("trajectory_encoder." if encoder else "trajectory_decoder.") + key
