"""The networks of MotionCrafter: a 4D geometry VAE and a spatio-temporal U-Net, at any size.

    c = E_rgb(I)                      RGB condition latent, posterior mean, unscaled            (spec 1.4)
    e = CLIP(I)                       one image token per frame                                 (spec 1.5)
    z = -U(c, t0, e) / s              deterministic: one pass, no noise; s = scaling factor     (spec 1.6)
    X = D1(q1(z_g))                   world points of each pixel                                (spec 1.1)
    V = D2([q2(z_m), z_g]) / 10       world displacement to the next frame ("unify" fusion)     (spec 1.2)

Full and mini are the same classes; only the numbers in `MotionCrafterConfig` differ. Nothing here downloads, freezes or
stops gradients: a frozen decoder is one whose parameters have `requires_grad=False`, so the loss on its output still
reaches the U-Net.

Shape legend: B clips, T frames, N = B*T images, C channels, H W pixels, h w = H W divided by the VAE factor.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Literal

import torch
from diffusers.models.autoencoders.vae import Decoder, DiagonalGaussianDistribution, Encoder
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from worldline.systems import flow_input
from worldline.systems.motioncrafter.config import (
    AutoencoderConfig,
    Fusion,
    ImageEncoderConfig,
    MotionCrafterConfig,
    UNetConfig,
    mini_config,
)

__all__ = [
    "AutoencoderConfig",
    "GeometryMotionVAE",
    "ImageEncoderConfig",
    "MotionCrafter",
    "MotionCrafterConfig",
    "RgbEncoder",
    "UNetConfig",
    "VideoUNet",
    "build",
    "time_ids",
    "mini_config",
    "unet_weights_from_prior",
]

DETERMINISTIC_TIMESTEP = 1.6378
"""0.25 ln(700) rounded as published: the network sees the largest noise level, and no noise."""

TIME_IDS = (7.0, 127.0, 0.02)
"""Frames per second, motion bucket, noise strength of the condition frames: what the weights were trained with."""


def _encoder(config: AutoencoderConfig, in_channels: int = 3) -> Encoder:
    return Encoder(
        in_channels=in_channels,
        out_channels=config.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * len(config.block_out_channels),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        double_z=True,
    )


def _decoder(config: AutoencoderConfig, in_channels: int) -> Decoder:
    return Decoder(
        in_channels=in_channels,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * len(config.block_out_channels),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
    )


class RgbEncoder(nn.Module):
    """The half of an image autoencoder that makes condition latents; keys as in the published SVD `vae` (spec 1.4)."""

    def __init__(self, config: AutoencoderConfig, extra_channels: int = 0) -> None:
        super().__init__()
        self.encoder = _encoder(config, 3 + extra_channels)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def encode(self, images: Float[Tensor, "N K H W"]) -> DiagonalGaussianDistribution:
        """Posterior of the latent [N, C, h, w] of images in [-1, 1], and of what comes with them (`flow_input`).

        `.mode()` at inference, `.sample()` to train.
        """
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(images)))


class GeometryMotionVAE(nn.Module):
    """The 4D VAE: normalised world points and scene flow <-> latents, frame by frame (spec 1.1 to 1.3).

    All latents are unscaled. `fusion` says what the motion latent is:
      unify     own encoder; the motion decoder sees [q2(z_m), z_g]: motion first, z_g without its own post_quant_conv
      separate  own encoder; the motion decoder sees q2(z_m) only
      offset    own encoder; z = z_g + o is one latent for both, and both decoders read it
      none      no motion branch: scene flow goes through the geometry encoder and decoder, unscaled
    """

    encoder: Encoder
    quant_conv: nn.Conv2d
    post_quant_conv: nn.Conv2d
    decoder: Decoder
    encoder_2: Encoder
    quant_conv_2: nn.Conv2d
    post_quant_conv_2: nn.Conv2d
    decoder_2: Decoder

    def __init__(
        self, config: AutoencoderConfig, *, fusion: Fusion = "unify", motion_scale: float = 10.0, encoders: bool = True
    ) -> None:
        """Build with random weights; `encoders=False` leaves out what inference never uses."""
        super().__init__()
        self.fusion, self.motion_scale, self.latent_channels = fusion, motion_scale, config.latent_channels
        channels = config.latent_channels
        for suffix in ("",) if fusion == "none" else ("", "_2"):
            if encoders:
                self.add_module("encoder" + suffix, _encoder(config))
                self.add_module("quant_conv" + suffix, nn.Conv2d(2 * channels, 2 * channels, 1))
            self.add_module("post_quant_conv" + suffix, nn.Conv2d(channels, channels, 1))
            widened = 2 if suffix and fusion == "unify" else 1
            self.add_module("decoder" + suffix, _decoder(config, channels * widened))

    @property
    def motion_modules(self) -> list[nn.Module]:
        """The motion branch: what stage 2 trains."""
        return [module for name, module in self.named_children() if name.endswith("_2")]

    def encode(self, points: Float[Tensor, "N 3 H W"]) -> DiagonalGaussianDistribution:
        """Posterior of the geometry latent [N, C, h, w] of normalised world points."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(points)))

    def encode_2(self, flow: Float[Tensor, "N 3 H W"]) -> DiagonalGaussianDistribution:
        """Posterior of the motion latent (the offset, for "offset") of scene flow in the unit of the points."""
        if self.fusion == "none":
            return self.encode(flow)
        return DiagonalGaussianDistribution(self.quant_conv_2(self.encoder_2(self.motion_scale * flow)))

    def decode(self, z_geometry: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        """Normalised world points of a geometry latent (the joint one, for "offset"); raw, unbounded."""
        return self.decoder(self.post_quant_conv(z_geometry))

    def decode_2(
        self, z_motion: Float[Tensor, "N C h w"], z_geometry: Float[Tensor, "N C h w"] | None = None
    ) -> Float[Tensor, "N 3 H W"]:
        """Scene flow of a motion latent (the joint one, for "offset"); "unify" needs the geometry latent too."""
        if self.fusion == "none":
            return self.decode(z_motion)
        z = self.post_quant_conv_2(z_motion)
        if self.fusion == "unify":
            if z_geometry is None:
                raise ValueError("The 'unify' fusion decodes motion from both latents: pass z_geometry too.")
            z = torch.cat([z, z_geometry], dim=1)
        return self.decoder_2(z) / self.motion_scale

    def join(self, z_geometry: Tensor, z_motion: Tensor, dim: int = 1) -> Tensor:
        """The joint latent the U-Net predicts, from what `encode` and `encode_2` gave."""
        return z_geometry + z_motion if self.fusion == "offset" else torch.cat([z_geometry, z_motion], dim=dim)

    def split(self, joint: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        """What `decode` and `decode_2` take, from a joint latent."""
        if self.fusion == "offset":
            return joint, joint
        z_geometry, z_motion = joint.split(self.latent_channels, dim=dim)
        return z_geometry, z_motion

    def decode_joint(
        self, joint: Float[Tensor, "N C h w"]
    ) -> tuple[Float[Tensor, "N 3 H W"], Float[Tensor, "N 3 H W"]]:
        """Points and scene flow of a joint latent."""
        z_geometry, z_motion = self.split(joint)
        return self.decode(z_geometry), self.decode_2(z_motion, z_geometry)

    @torch.no_grad()
    def start_motion_from_geometry(self) -> None:
        """Copy the geometry branch into the motion branch (spec 1.2); "unify" gets both halves of conv_in from it."""
        for suffix_module in [name for name, _ in self.named_children() if name.endswith("_2")]:
            source = copy.deepcopy(getattr(self, suffix_module.removesuffix("_2")).state_dict())
            if suffix_module == "decoder_2" and self.fusion == "unify":
                source["conv_in.weight"] = source["conv_in.weight"].repeat(1, 2, 1, 1)
            getattr(self, suffix_module).load_state_dict(source)
        if self.fusion == "offset":  # an offset starts at zero, so that the geometry decoder starts undisturbed
            state = {key: torch.zeros_like(value) for key, value in self.quant_conv_2.state_dict().items()}
            state["bias"][self.latent_channels :] = -10.0  # log variance: its samples are (almost) zero too
            self.quant_conv_2.load_state_dict(state)


class VideoUNet(UNetSpatioTemporalConditionModel):
    """SVD's U-Net with one image token per frame and a time embedding in float32 (spec 1.5)."""

    def forward(  # type: ignore[override]  # returns the tensor itself, and takes a token per frame
        self,
        sample: Float[Tensor, "B T C h w"],
        timestep: Tensor | float,
        encoder_hidden_states: Float[Tensor, "B T D"],
        added_time_ids: Float[Tensor, "B ids"],
    ) -> Float[Tensor, "B T C2 h w"]:
        """Raw network output.

        `timestep` is a float or a tensor of one or B numbers. Temporal cross-attention sees the first token only,
        as in stock SVD. Raises ValueError when h or w is no multiple of 2^(levels - 1).
        """
        batch, frames = sample.shape[:2]
        factor = 2 ** (len(self.down_blocks) - 1)
        if sample.shape[-2] % factor or sample.shape[-1] % factor:
            raise ValueError(
                f"Latents of {list(sample.shape[-2:])} cells must be multiples of {factor}; pad the frames."
            )
        dtype = self.conv_in.weight.dtype

        # 1. time: sinusoids in float32 whatever the network runs in, one embedding for all frames of a clip
        times = torch.as_tensor(timestep, device=sample.device, dtype=torch.float32).reshape(-1).expand(batch)
        ids = self.add_time_proj(added_time_ids.float().flatten()).reshape(batch, -1)
        embedding = self.time_embedding(self.time_proj(times).to(dtype)) + self.add_embedding(ids.to(dtype))
        common = {
            "temb": embedding.repeat_interleave(frames, dim=0),
            "image_only_indicator": torch.zeros(batch, frames, dtype=dtype, device=sample.device),
        }
        tokens = {"encoder_hidden_states": encoder_hidden_states.to(dtype).flatten(0, 1).unsqueeze(1)}  # [N, 1, D]

        # 2. down, middle, up; x is [N, C, h, w]
        x = self.conv_in(sample.to(dtype).flatten(0, 1))
        skips: tuple[Tensor, ...] = (x,)
        for block in self.down_blocks:
            extra = tokens if getattr(block, "has_cross_attention", False) else {}
            x, outputs = block(hidden_states=x, **common, **extra)
            skips += outputs
        x = self.mid_block(hidden_states=x, **common, **tokens)
        for block in self.up_blocks:
            extra = tokens if getattr(block, "has_cross_attention", False) else {}
            count = len(list(block.get_submodule("resnets").children()))
            x = block(hidden_states=x, res_hidden_states_tuple=skips[-count:], **common, **extra)
            skips = skips[:-count]

        # 3. out
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x.unflatten(0, (batch, frames))


def build_unet(config: MotionCrafterConfig) -> VideoUNet:
    """The U-Net of a configuration, with random weights: all levels attend but the last, as in SVD."""
    levels, unet = len(config.unet.block_out_channels), config.unet
    return VideoUNet(
        in_channels=config.unet_in_channels,
        out_channels=config.latent_channels,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * (levels - 1) + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * (levels - 1),
        block_out_channels=unet.block_out_channels,
        num_attention_heads=unet.num_attention_heads,
        layers_per_block=unet.layers_per_block,
        cross_attention_dim=unet.cross_attention_dim,
        addition_time_embed_dim=unet.addition_time_embed_dim,
        projection_class_embeddings_input_dim=len(TIME_IDS) * unet.addition_time_embed_dim,
        num_frames=config.window,
    )


def build_image_encoder(config: ImageEncoderConfig) -> CLIPVisionModelWithProjection:
    """The CLIP vision encoder of a configuration, with random weights."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**asdict(config)))


def time_ids(like: Tensor, noise_strength: Tensor | None = None) -> Float[Tensor, "B 3"]:
    """The three time ids for each clip of a batch `like`; `noise_strength` [B] replaces the third in training."""
    ids = torch.tensor([TIME_IDS], device=like.device).repeat(len(like), 1)
    return ids if noise_strength is None else torch.cat([ids[:, :2], noise_strength[:, None].float()], dim=1)


class MotionCrafter(nn.Module):
    """The four networks and their configuration; one `state_dict`, prefixes vae, unet, rgb_vae, image_encoder."""

    def __init__(
        self,
        config: MotionCrafterConfig,
        *,
        vae: GeometryMotionVAE,
        unet: VideoUNet,
        rgb_vae: RgbEncoder,
        image_encoder: nn.Module,
    ) -> None:
        super().__init__()
        self.config = config
        self.vae, self.unet, self.rgb_vae, self.image_encoder = vae, unet, rgb_vae, image_encoder

    def time_ids(self, like: Tensor, noise_strength: Tensor | None = None) -> Float[Tensor, "B 3"]:
        """See the function of that name."""
        return time_ids(like, noise_strength)

    def predict_latents(
        self, condition: Float[Tensor, "B T C h w"], tokens: Float[Tensor, "B T D"], time_ids: Float[Tensor, "B 3"]
    ) -> Float[Tensor, "B T C2 h w"]:
        """The deterministic pass: scaled joint latents, minus the raw output at the fixed timestep (spec 1.6)."""
        return -self.unet(condition, DETERMINISTIC_TIMESTEP, tokens, time_ids)


def build(config: MotionCrafterConfig, *, meta: bool = False, encoders: bool = True) -> MotionCrafter:
    """All networks of a configuration with random weights, on the meta device (no memory) if `meta`.

    `encoders=False` leaves out the geometry VAE's encoders, which only training needs.
    """
    with torch.device("meta" if meta else torch.get_default_device()):
        return MotionCrafter(
            config,
            vae=GeometryMotionVAE(
                config.vae, fusion=config.fusion, motion_scale=config.motion_scale, encoders=encoders
            ),
            unet=build_unet(config),
            rgb_vae=RgbEncoder(config.rgb_vae, flow_input.CHANNELS if config.optical_flow else 0),
            image_encoder=build_image_encoder(config.image_encoder),
        )


def unet_weights_from_prior(
    prior: dict[str, Tensor], config: MotionCrafterConfig, *, noisy_motion: Literal["copy", "zero"] = "copy"
) -> dict[str, Tensor]:
    """U-Net weights from a video denoiser that reads [noisy | condition] and predicts one latent, as SVD does.

    Deterministic: conv_in keeps the condition half. Denoising: [noisy, noisy or zeros, condition], in the order the
    sampler feeds them (the public trainer puts the condition weights on the noisy motion). conv_out is stacked for
    geometry and motion (spec 1.5).
    """
    condition, latent = config.rgb_vae.latent_channels, config.vae.latent_channels
    weight = prior["conv_in.weight"]
    noisy, seen = weight[:, : weight.shape[1] - condition], weight[:, -condition:]
    copies = config.latent_channels // latent
    extra = [noisy if noisy_motion == "copy" else torch.zeros_like(noisy)] * (copies - 1)
    widened = dict(prior)
    widened["conv_in.weight"] = torch.cat([noisy, *extra, seen], 1) if config.paradigm == "denoising" else seen.clone()
    widened["conv_out.weight"] = prior["conv_out.weight"].repeat(copies, 1, 1, 1)
    widened["conv_out.bias"] = prior["conv_out.bias"].repeat(copies)
    return widened
