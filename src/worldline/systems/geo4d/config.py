"""Sizes of Geo4D's networks; the defaults are the published model's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from worldline.systems import flow_input

Modality = Literal["points", "ray_direction", "ray_moment", "disparity"]
MODALITIES: tuple[Modality, ...] = ("points", "ray_direction", "ray_moment", "disparity")
"""Order of the latent channels."""
FLOW_CELLS = 2
"""Places per latent cell and side at which a network that reads optical flow is told of it."""


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The video U-Net (paper section 3.2; DynamiCrafter's topology).

    Attributes:
        in_channels: noisy latents of all modalities and the latent of the video.
        out_channels: predicted v of all modalities.
        model_channels: width of the first level.
        channel_mult: width of each level in units of it.
        num_res_blocks: residual blocks per level going down; one more going up.
        attention_levels: levels with spatial and temporal attention.
        head_channels: channels per attention head.
        context_dim: channels of the context tokens.
        text_tokens: tokens shared by all frames.
        image_tokens: tokens that each frame has for itself.
        dropout: in training.
        norm_groups: groups of every group normalisation.
    """

    in_channels: int = 20
    out_channels: int = 16
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    head_channels: int = 64
    context_dim: int = 1024
    text_tokens: int = 77
    image_tokens: int = 16
    dropout: float = 0.1
    norm_groups: int = 32

    @property
    def multiple(self) -> int:
        """Latent height and width must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """A KL autoencoder of images; one latent pixel is 2^(levels - 1) pixels.

    Attributes:
        channels: width of each level, highest resolution first.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        latent_channels: channels of a latent.
        scaling_factor: latents are multiplied by it for the U-Net.
        uncertainty: the decoder also predicts a fourth channel from its last features (paper eq. 3).
        norm_groups: groups of every group normalisation.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    uncertainty: bool = False
    norm_groups: int = 32


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """The query transformer from image tokens to context tokens.

    Attributes:
        dim, depth, heads, head_channels: size of the transformer.
        queries: tokens per frame.
        frames: frames it was made for.
        embedding_dim: channels of the image tokens.
        output_dim: channels of the context tokens.
        ff_mult: widening of the feed-forward layers.
    """

    dim: int = 1024
    depth: int = 4
    heads: int = 12
    head_channels: int = 64
    queries: int = 16
    frames: int = 16
    embedding_dim: int = 1280
    output_dim: int = 1024
    ff_mult: int = 4


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One OpenCLIP transformer; the defaults are the text tower of ViT-H-14."""

    width: int = 1024
    heads: int = 16
    layers: int = 24


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The CLIP towers that make the context; needed only to convert a published checkpoint.

    Attributes:
        text, vision: the transformers.
        vocabulary: tokens known to the text tower.
        image_size, patch_size: of the vision tower, in pixels.
        embedding: channels of the shared space, which the context never reaches.
    """

    text: TowerConfig = TowerConfig()
    vision: TowerConfig = TowerConfig(width=1280, heads=16, layers=32)
    vocabulary: int = 49408
    image_size: int = 224
    patch_size: int = 14
    embedding: int = 1024


@dataclass(frozen=True, kw_only=True)
class Geo4DConfig:
    """Everything needed to build and run the system.

    Attributes:
        modalities: what is predicted, in the order of the latent channels.
        unet, vae, point_vae: networks; the two autoencoders differ in the uncertainty branch.
        condition_vae: autoencoder whose encoder looks at the video; None is `vae`, as published.
        window: frames per window; the context is made for as many.
        stride: frames from one window to the next.
        steps: DDIM steps.
        fps: frame rate told to the network; None is the video's own.
        moment_gain: ray moments are multiplied by it for the network (the published one is not in the code; 1 is what
            inference assumes).
        deterministic: the sampler begins with zeros in place of noise and takes one step (`direct`).
        optical_flow: beside the latent of the video the U-Net reads optical flow to the neighbouring frames
            (`flow_input`), zeros where there is none; published networks do not.
    """

    modalities: tuple[Modality, ...] = MODALITIES
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    point_vae: VaeConfig = field(default_factory=lambda: VaeConfig(uncertainty=True))
    condition_vae: VaeConfig | None = None
    window: int = 16
    stride: int = 4
    steps: int = 5
    fps: int | None = 24
    moment_gain: float = 1.0
    deterministic: bool = False
    optical_flow: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot work together."""
        noisy, seen = self.latent_channels * len(self.modalities), (self.condition_vae or self.vae).latent_channels
        if self.point_vae.latent_channels != self.vae.latent_channels:
            raise ValueError("Points are encoded by the common autoencoder; give both as many latent channels.")
        wanted = noisy + seen + self.flow_channels
        if (self.unet.in_channels, self.unet.out_channels) != (wanted, noisy):
            raise ValueError(
                f"{len(self.modalities)} modalities need a U-Net with {wanted} channels in and {noisy} out, "
                f"not {self.unet.in_channels} and {self.unet.out_channels}."
            )
        if not self.modalities or self.modalities != tuple(m for m in MODALITIES if m in self.modalities):
            raise ValueError(f"Modalities must be some of {', '.join(MODALITIES)}, in this order.")

    @property
    def latent_channels(self) -> int:
        """Latent channels of one modality."""
        return self.vae.latent_channels

    @property
    def flow_channels(self) -> int:
        """Channels of optical flow that the U-Net reads."""
        return flow_input.CHANNELS * FLOW_CELLS**2 if self.optical_flow else 0

    @property
    def size_multiple(self) -> int:
        """Image height and width must be multiples of this (64 as published)."""
        return 2 ** (len(self.vae.channels) - 1) * self.unet.multiple

    @property
    def context_tokens(self) -> int:
        """Tokens of the constant context."""
        return self.unet.text_tokens + self.window * self.unet.image_tokens

    def with_modalities(self, modalities: tuple[Modality, ...]) -> Geo4DConfig:
        """The same networks for other modalities: only the first and last convolution differ."""
        seen = self.unet.in_channels - self.unet.out_channels
        noisy = self.latent_channels * len(modalities)
        return replace(
            self, modalities=modalities, unet=replace(self.unet, in_channels=noisy + seen, out_channels=noisy)
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able data."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Geo4DConfig:
        """The inverse of `to_dict`; raises ValueError for unknown keys."""
        kinds = {"unet": UNetConfig, "vae": VaeConfig, "point_vae": VaeConfig, "condition_vae": VaeConfig}
        parts = {k: checked(kinds[k], v) if k in kinds and v is not None else v for k, v in values.items()}
        return checked(Geo4DConfig, parts)


def checked(kind: type, values: dict[str, Any]) -> Any:
    """A configuration from plain data; lists become tuples, unknown names are refused."""
    unknown = sorted(set(values) - {entry.name for entry in fields(kind)})
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}; remove it or use a matching version.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def mini_config() -> Geo4DConfig:
    """The small size: same classes, 1/8-resolution latents; what inference needs is below 8 M parameters.

    It has its own condition encoder, trained with the U-Net, as no autoencoder of pictures was ever trained here; a
    small learned context in place of the published constant one; and it reads optical flow. What is trained at a time
    (3.9 M at most) keeps a checkpoint with averages and moments below 60 MiB.
    """
    vae = VaeConfig(channels=(16, 32, 64, 64), blocks=1, latent_channels=8, scaling_factor=1.0, norm_groups=8)
    seen = replace(vae, channels=(16, 32, 64, 96), latent_channels=24)
    return Geo4DConfig(
        unet=UNetConfig(
            in_channels=4 * 8 + 24 + flow_input.CHANNELS * FLOW_CELLS**2,
            out_channels=4 * 8,
            model_channels=48,
            channel_mult=(1, 1),
            num_res_blocks=1,
            attention_levels=(0, 1),
            head_channels=16,
            context_dim=32,
            text_tokens=4,
            image_tokens=1,
            dropout=0.0,
            norm_groups=16,
        ),
        vae=vae,
        point_vae=replace(vae, uncertainty=True),
        condition_vae=seen,
        window=8,
        stride=4,
        steps=1,
        fps=None,
        moment_gain=4.0,
        optical_flow=True,
    )
