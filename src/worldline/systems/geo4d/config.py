"""Sizes of Geo4D's networks; the defaults are the published model's."""

from __future__ import annotations

from dataclasses import dataclass, field


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
class Geo4DConfig:
    """Everything needed to build and run the system.

    Attributes:
        unet, vae, point_vae: networks; the two autoencoders differ in the uncertainty branch.
        window: frames per window.
        stride: frames from one window to the next.
        steps: DDIM steps.
        fps: frame rate told to the network; None is the video's own.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    point_vae: VaeConfig = field(default_factory=lambda: VaeConfig(uncertainty=True))
    window: int = 16
    stride: int = 4
    steps: int = 5
    fps: int | None = 24
