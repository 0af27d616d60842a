"""The numbers that fix MotionCrafter's networks: published full size by default, `mini_config()` for the small size."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Fusion = Literal["unify", "separate", "offset", "none"]
Paradigm = Literal["deterministic", "denoising"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of one image autoencoder (spec 1.1).

    Attributes:
        block_out_channels: width of each level; every level but the last halves the resolution.
        layers_per_block: residual blocks per level in the encoder; the decoder has one more.
        norm_num_groups: groups of the group norms; must divide every width.
        latent_channels: channels of one latent.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    latent_channels: int = 4

    @property
    def factor(self) -> int:
        """Pixels per latent cell along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of the U-Net (spec 1.5); its input and output channels follow from the autoencoders and the paradigm.

    Attributes:
        block_out_channels: width of each level, multiples of 32; every level but the last halves the resolution.
        num_attention_heads: heads of each level.
        layers_per_block: residual blocks per level on the way down; one more on the way up.
        cross_attention_dim: length of the image token.
        addition_time_embed_dim: length of the sinusoid of each of the three time ids.
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_attention_heads: tuple[int, ...] = (5, 10, 20, 20)
    layers_per_block: int = 2
    cross_attention_dim: int = 1024
    addition_time_embed_dim: int = 256

    @property
    def factor(self) -> int:
        """Latent height and width must be multiples of this."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """Sizes of the CLIP vision encoder; the defaults are ViT-H/14."""

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    projection_dim: int = 1024
    hidden_act: str = "gelu"


@dataclass(frozen=True, kw_only=True)
class MotionCrafterConfig:
    """Everything that fixes the networks; the defaults are the published full size.

    Attributes:
        vae: geometry and motion autoencoder.
        rgb_vae: autoencoder whose encoder makes the condition latents.
        unet: the spatio-temporal U-Net.
        image_encoder: the CLIP vision encoder.
        fusion: how the motion latent relates to the geometry latent (`GeometryMotionVAE`).
        paradigm: "deterministic" sees the condition only, "denoising" the noisy latents before it.
        scaling_factor: the U-Net works on latents multiplied by this.
        motion_scale: scene flow is multiplied by this inside the motion branch.
        optical_flow: frames carry optical flow to their neighbours (`flow_input`), which the RGB encoder reads too;
            published networks do not.
        normalization: what world points are divided by, "mean" distance to their centre or "max" distance.
        window: frames the network was trained on.
        overlap: frames shared by neighbouring windows at inference.
    """

    vae: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    rgb_vae: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    fusion: Fusion = "unify"
    paradigm: Paradigm = "deterministic"
    scaling_factor: float = 0.18215
    motion_scale: float = 10.0
    normalization: Literal["mean", "max"] = "mean"
    optical_flow: bool = False
    window: int = 25
    overlap: int = 5

    def __post_init__(self) -> None:
        """Refuse sizes that cannot work together."""
        if self.vae.factor != self.rgb_vae.factor:
            raise ValueError(
                f"The geometry VAE divides the image by {self.vae.factor}, the RGB VAE by {self.rgb_vae.factor}; "
                "give both the same number of levels."
            )
        if self.image_encoder.projection_dim != self.unet.cross_attention_dim:
            raise ValueError(
                f"The image token has {self.image_encoder.projection_dim} numbers, but the U-Net attends to "
                f"{self.unet.cross_attention_dim}; make the two equal."
            )

    @property
    def latent_channels(self) -> int:
        """Channels of the joint latent the U-Net predicts: geometry then motion, or one for both ("offset")."""
        return self.vae.latent_channels * (1 if self.fusion == "offset" else 2)

    @property
    def unet_in_channels(self) -> int:
        """Channels the U-Net reads: [noisy joint latent (denoising only) | RGB condition latent]."""
        noisy = self.latent_channels if self.paradigm == "denoising" else 0
        return noisy + self.rgb_vae.latent_channels

    @property
    def size_multiple(self) -> int:
        """Image height and width must be multiples of this (64 at full size)."""
        return self.vae.factor * self.unet.factor

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able data."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> MotionCrafterConfig:
        """The inverse of `to_dict`; raises ValueError for unknown keys."""
        parts = {
            "vae": AutoencoderConfig,
            "rgb_vae": AutoencoderConfig,
            "unet": UNetConfig,
            "image_encoder": ImageEncoderConfig,
        }
        values = {name: _checked(parts[name], value) if name in parts else value for name, value in values.items()}
        return _checked(MotionCrafterConfig, values)


def _checked(kind: type, values: dict[str, Any]) -> Any:
    unknown = sorted(set(values) - {entry.name for entry in fields(kind)})
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}; remove it or use a matching version.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def mini_config(
    *,
    fusion: Fusion = "unify",
    paradigm: Paradigm = "deterministic",
    normalization: Literal["mean", "max"] = "mean",
    optical_flow: bool = False,
) -> MotionCrafterConfig:
    """The small size: same classes, 1/8-resolution latents as in the paper, 4.7 M parameters at inference (9 MB).

    Latents have more channels than the paper's because nothing here was trained before; what stage 3 trains (3.4 M)
    keeps a checkpoint with averages and moments below 60 MiB.
    """
    return MotionCrafterConfig(
        vae=AutoencoderConfig(
            block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=8, latent_channels=8
        ),
        rgb_vae=AutoencoderConfig(
            block_out_channels=(16, 32, 64, 96), layers_per_block=1, norm_num_groups=8, latent_channels=16
        ),
        unet=UNetConfig(
            block_out_channels=(64, 64),
            num_attention_heads=(2, 2),
            layers_per_block=1,
            cross_attention_dim=64,
            addition_time_embed_dim=32,
        ),
        image_encoder=ImageEncoderConfig(
            image_size=64,
            patch_size=16,
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=3,
            projection_dim=64,
        ),
        fusion=fusion,
        paradigm=paradigm,
        normalization=normalization,
        optical_flow=optical_flow,
        window=4,
        overlap=2,
    )
