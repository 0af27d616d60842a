"""The trajectory transformer of 4D-STraG: diffusers' Wan transformer, with reference tokens and motion guidance.

Added to the stock model (spec 2.2, 6.2): the latent of a reference picture as tokens in front of the video, which take
the first place in time; features of the first picture that modulate the tokens in every block; input channels for
further conditions. Without them it is the stock model, key by key, so it also serves as 4D-ViSM's inpainter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_wan import (
    WanRotaryPosEmbed,
    WanTransformer3DModel,
    WanTransformerBlock,
)
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recompute

from worldline.systems.more4d.config import TEXT_LENGTH, Alignment, PriorConfig, TransformerConfig
from worldline.systems.more4d.guidance import FeatureAdapter, SpatialGuidance
from worldline.systems.more4d.omnimae import OmniMae


class GuidedBlock(WanTransformerBlock):
    """A Wan block whose self-attention and feed-forward inputs are guided after their AdaLN modulation."""

    def guide(self, features: int, dim: int) -> None:
        """Add the two guidance modules."""
        self.spatial_guidance_self = SpatialGuidance(features, dim)
        self.spatial_guidance_ffn = SpatialGuidance(features, dim)

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        context: Tensor,
        modulation: Tensor,
        rotary: tuple[Tensor, Tensor],
        features: Tensor | None = None,
        alignment: Alignment = "prepended",
    ) -> Tensor:
        """Tokens [B, L, D] after the block; features [B, M, F] guide M of them."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.scale_shift_table + modulation.float()).chunk(6, 1)

        hidden = (self.norm1(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        if features is not None:
            hidden = self.spatial_guidance_self(hidden, features, alignment)
        attended = self.attn1(hidden, None, None, rotary)
        tokens = (tokens.float() + attended * gate).type_as(tokens)

        tokens = tokens + self.attn2(self.norm2(tokens.float()).type_as(tokens), context, None, None)

        hidden = (self.norm3(tokens.float()) * (1 + ffn_scale) + ffn_shift).type_as(tokens)
        if features is not None:
            hidden = self.spatial_guidance_ffn(hidden, features, alignment)
        return (tokens.float() + self.ffn(hidden).float() * ffn_gate).type_as(tokens)


class WanTransformer4D(WanTransformer3DModel):
    """Predicts the velocity of a latent from its noisy state and conditions.

    Parameters of the stock model have diffusers' names, additions have the published ones: `ref_conv`,
    `feature_adapter`, `blocks.N.spatial_guidance_{self,ffn}` and `omnimae_extractor`, the frozen motion prior.
    """

    _no_split_modules = ["GuidedBlock", "WanTransformerBlock"]
    _repeated_blocks = ["GuidedBlock"]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 64,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = 1280,
        added_kv_proj_dim: int | None = 5120,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        reference_tokens: bool = False,
        prior: dict[str, int] | None = None,
        alignment: Alignment = "prepended",
    ) -> None:
        """Build with random weights; `prior` are the values of a `PriorConfig`, None leaves guidance out."""
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        dim = num_attention_heads * attention_head_dim
        for block in self.blocks:
            block.__class__ = GuidedBlock  # the same parameters, another forward
        if reference_tokens:
            cell = (patch_size[1], patch_size[2])
            self.ref_conv = nn.Conv2d(out_channels, dim, cell, cell)
        if prior is not None:
            features = PriorConfig(**prior)
            self.feature_adapter = FeatureAdapter(features.dim)
            for block in self.blocks:
                assert isinstance(block, GuidedBlock)
                block.guide(features.dim, dim)
            self.omnimae_extractor = OmniMae(features).requires_grad_(False).eval()

    @property
    def settings(self) -> Any:
        """The arguments it was built with, by name."""
        return self.config

    @property
    def guided(self) -> bool:
        """Whether there is a Motion Perception Module."""
        return self.settings.prior is not None

    def train(self, mode: bool = True) -> WanTransformer4D:
        """Training mode for all but the motion prior."""
        super().train(mode)
        if self.guided:
            self.omnimae_extractor.eval()
        return self

    def load_prior(self, state: Mapping[str, Tensor]) -> None:
        """Put the weights of a masked autoencoder (keys "trunk.*", "head.*") into the motion prior, strictly."""
        self.omnimae_extractor.load_state_dict(dict(state), strict=True)

    @torch.no_grad()
    def look(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N F"]:
        """Motion features of a picture in [0, 1]; they do not change while a latent is sampled.

        Raises:
            ValueError: the picture is not in [0, 1].
        """
        low, high = float(image.min()), float(image.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(f"The motion prior sees pictures in [0, 1], got values from {low:.3g} to {high:.3g}.")
        return self.omnimae_extractor(image.to(self.omnimae_extractor.trunk.norm.weight.dtype))

    def forward(  # type: ignore[override]
        self,
        hidden_states: Float[Tensor, "B C T h w"],
        timestep: Float[Tensor, " B"],
        text: Float[Tensor, "B L E"],
        image: Float[Tensor, "B K I"] | None = None,
        *,
        reference: Float[Tensor, "B Z h w"] | None = None,
        motion: Float[Tensor, "B N F"] | None,
    ) -> Float[Tensor, "B Z T h w"]:
        """Velocity of the noisy latent in the first channels of `hidden_states`.

        Args:
            hidden_states: noisy latent and conditions, C channels.
            timestep: 1000 sigma.
            text: embedded text; a model with an image context reads 512 rows, missing ones are zero.
            image: embedded image of the context, if the model has one.
            reference: latent of a picture that enters as tokens; None leaves them out.
            motion: features from `look`; must be given or None on purpose, so that guidance is never dead by accident.

        Raises:
            ValueError: motion features or a reference for a model without these parts.
        """
        if motion is not None and not self.guided:
            raise ValueError("This transformer has no Motion Perception Module; give motion=None.")
        if reference is not None and not self.settings.reference_tokens:
            raise ValueError("This transformer has no reference tokens; give reference=None.")
        dtype = self.patch_embedding.weight.dtype
        hidden_states, text = hidden_states.to(dtype), text.to(dtype)
        image, reference, motion = (v if v is None else v.to(dtype) for v in (image, reference, motion))
        patch = self.settings.patch_size
        frames, rows, columns = (n // p for n, p in zip(hidden_states.shape[2:], patch, strict=True))

        # 1. tokens; the reference comes first, in place and in time
        tokens = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        extra = 0
        if reference is not None:
            front = self.ref_conv(reference).flatten(2).transpose(1, 2)
            tokens, extra = torch.cat([front, tokens], 1), front.shape[1]
        steps = hidden_states.shape[2] + (patch[0] if extra else 0)
        rotary = self.rope(hidden_states.new_empty(1).expand(1, 1, steps, *hidden_states.shape[3:]))

        # 2. time, text and image
        temb, modulation, context = self._context(timestep, text, image)

        # 3. blocks
        features = None if motion is None else self.feature_adapter(motion, (frames, rows, columns))
        for block in self.blocks:
            inputs = (tokens, context, modulation, rotary, features, self.settings.alignment)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = recompute(block, *inputs, use_reentrant=False)
            else:
                tokens = block(*inputs)

        # 4. back to a latent
        shift, scale = (self.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        tokens = self.proj_out((self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens))[:, extra:]
        tokens = tokens.unflatten(2, (*patch, -1)).unflatten(1, (frames, rows, columns))  # B t h w pt ph pw Z
        return tokens.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _context(self, timestep: Tensor, text: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Time embedding [B, D], modulation [B, 6, D], and image and text tokens."""
        if self.settings.image_dim is not None:
            text = functional.pad(text, (0, 0, 0, TEXT_LENGTH - text.shape[1]))
            if image is None:
                image = text.new_zeros(len(text), 257, self.settings.image_dim)
        temb, modulation, words, seen = self.condition_embedder(timestep, text, image)
        context = words if seen is None else torch.cat([seen, words], dim=1)
        return temb, modulation.unflatten(1, (6, -1)), context


def build(config: TransformerConfig, *, meta: bool = False) -> WanTransformer4D:
    """A transformer with random weights, or without memory on the meta device."""
    with torch.device("meta" if meta else "cpu"):
        return WanTransformer4D(**arguments(config))


def arguments(config: TransformerConfig) -> dict[str, Any]:
    """What diffusers calls the settings."""
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "text_dim": config.text_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.layers,
        "image_dim": config.image_dim,
        "added_kv_proj_dim": None if config.image_dim is None else config.dim,
        "reference_tokens": config.reference_tokens,
        "prior": None if config.prior is None else asdict(config.prior),
        "alignment": config.alignment,
    }


def restore_tables(model: WanTransformer4D) -> WanTransformer4D:
    """Compute the table of rotations, which is in no file, after weights were put into a model from the meta device."""
    config = model.settings
    device = model.proj_out.weight.device
    with torch.device("cpu"):
        model.rope = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, config.rope_max_seq_len).to(device)
    return model


def widened(weight: Float[Tensor, "D C *k"], channels: int) -> Float[Tensor, "D W *k"]:
    """A patch embedding for more input channels: the old ones first, the new ones zero, so answers do not change.

    Raises:
        ValueError: channels would be lost.
    """
    if channels < weight.shape[1]:
        raise ValueError(f"A patch embedding of {weight.shape[1]} channels cannot be widened to {channels}.")
    out = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    out[:, : weight.shape[1]] = weight
    return out
