"""The numbers that fix MoRe4D's networks: published full size, the 1.3B size, and `mini_config()` for a CPU.

Published sizes: spec 1.1 (autoencoder), 2.1 (Wan backbone), 2.2 (Motion Perception Module).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

Alignment = Literal["prepended", "published"]
"""Where the rows without guidance go when reference tokens stand in front of the video: in front ("prepended", right),
or at the end, so that the reference is guided and the last latent frame is not ("published")."""

TEXT_LENGTH = 512
"""Rows of text that a transformer with an image context reads; diffusers splits the context there."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """A masked autoencoder of pictures, whose encoder is the motion prior; the defaults are OmniMAE's ViT-B.

    Attributes:
        dim, depth, heads: of the encoder.
        image_size: side of the square the picture is stretched to.
        patch: side of a patch in pixels; `patch_frames` is its length in time.
        frames: length in time of the table of positions; a picture uses the first slot of it.
        decoder_dim, decoder_depth, decoder_heads: of the decoder that training needs; depth 0 leaves it out.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    image_size: int = 224
    patch: int = 16
    patch_frames: int = 2
    frames: int = 16
    decoder_dim: int = 384
    decoder_depth: int = 4
    decoder_heads: int = 8

    @property
    def side(self) -> int:
        """Patches along each side of the picture."""
        return self.image_size // self.patch

    @property
    def positions(self) -> int:
        """Rows of the table of positions."""
        return self.frames // self.patch_frames * self.side**2


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """One Wan transformer; the defaults are the published 14B trajectory transformer.

    Attributes:
        heads, head_dim, layers, ffn_dim: of the backbone; its width is heads * head_dim.
        in_channels: noisy latent and conditions: 36 inpainting, 48 control, 64 with depth.
        out_channels: channels of the predicted velocity.
        text_dim: length of a text embedding.
        image_dim: length of an image embedding; None: no image context.
        reference_tokens: let the latent of the first frame enter as tokens in front of the video (`ref_conv`).
        prior: of the Motion Perception Module; None: there is none.
        alignment: of guidance rows and tokens.
    """

    heads: int = 40
    head_dim: int = 128
    layers: int = 40
    ffn_dim: int = 13824
    in_channels: int = 64
    out_channels: int = 16
    text_dim: int = 4096
    image_dim: int | None = 1280
    reference_tokens: bool = True
    prior: PriorConfig | None = PriorConfig()
    alignment: Alignment = "prepended"

    @property
    def dim(self) -> int:
        """Width of the tokens."""
        return self.heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """The motion-sensitive autoencoder; the defaults are Wan 2.1's, with adaptors 128 wide.

    Attributes:
        base_dim: width of the first level of the video autoencoder; `widths` multiplies it level by level.
        z_dim: channels of a latent.
        blocks: residual blocks per level.
        time_halvings: at which of the level changes time is halved, too.
        adaptor_dim: width of trajectory encoder and decoder, a multiple of `adaptor_groups`.
        gain: normalised displacements are multiplied by it before they become a picture, whose contrast would else be
            small; published weights know 1.
        residual: the trajectory decoder adds to the inverse of what the encoder does at first; published: it does not.
        patch: pixels along each side that enter as the channels of one position; Wan 2.1 has 1, Wan 2.2 has 2.
        bypass: a linear path around the video autoencoder, at first the slowest cosines of each latent cell and colour,
            to which the autoencoder adds. Without it a small autoencoder that begins random is still blind to colour,
            and so to two of the three axes of motion, after 1,900 steps.
        shortcuts: averages and copies around every change of resolution, as in Wan 2.2.
        save_memory: in training, recompute activations in the backward pass, chunk by chunk.
    """

    base_dim: int = 96
    widths: tuple[int, ...] = (1, 2, 4, 4)
    z_dim: int = 16
    blocks: int = 2
    time_halvings: tuple[bool, ...] = (False, True, True)
    adaptor_dim: int = 128
    adaptor_groups: int = 32
    gain: float = 1.0
    residual: bool = False
    patch: int = 1
    bypass: bool = False
    shortcuts: bool = False
    save_memory: bool = True

    @property
    def factor(self) -> int:
        """Pixels per latent cell along each side."""
        return self.patch * 2 ** len(self.time_halvings)

    @property
    def frames_per_latent(self) -> int:
        """Frames per latent frame after the first, which stands alone."""
        return 2 ** sum(self.time_halvings)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The small text encoder of the embedded model; published weights use umT5-xxl (`encoders.Umt5`)."""

    words: int = 2048
    dim: int = 64
    layers: int = 2
    heads: int = 4
    length: int = 32


@dataclass(frozen=True, kw_only=True)
class MoRe4DConfig:
    """All networks of MoRe4D.

    Attributes:
        vae: encodes trajectories, pictures and depth; decodes trajectories and pictures.
        generator: 4D-STraG, generates trajectories.
        inpainter: 4D-ViSM, fills what the rendered points leave open.
        text: the small text encoder; None: texts are encoded outside.
        size: (H, W) the generator works at.
        frames: T; 1 + a multiple of `vae.frames_per_latent`.
        focal: (fx, fy) in image widths and heights that motion is normalised with; None: each picture's own. Published
            weights need the constants they were trained with, (1.04348, 1).
        stills: how a picture that stands still is encoded: as a "clip", which published weights know, or as one "frame"
            whose latent is repeated, many times faster.
        reference: what enters as reference tokens: the picture's latent, or the zeros that published weights know.
        deterministic: the generator begins with zeros in place of noise and takes one step (ours): it answers with the
            mean of what may happen, which is what a network too small to sample from a distribution does anyway.
    """

    vae: VaeConfig = field(default_factory=VaeConfig)
    generator: TransformerConfig = field(default_factory=TransformerConfig)
    inpainter: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(in_channels=36, reference_tokens=False, prior=None)
    )
    text: TextConfig | None = None
    size: tuple[int, int] = (368, 512)
    frames: int = 49
    focal: tuple[float, float] | None = None
    stills: Literal["clip", "frame"] = "clip"
    reference: Literal["picture", "zeros"] = "picture"
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if (self.frames - 1) % self.vae.frames_per_latent:
            raise ValueError(
                f"MoRe4D needs 1 + a multiple of {self.vae.frames_per_latent} frames, got {self.frames}; "
                f"choose {self.frames - (self.frames - 1) % self.vae.frames_per_latent}."
            )
        if any(side % (2 * self.vae.factor) for side in self.size):
            raise ValueError(f"MoRe4D needs sides that are multiples of {2 * self.vae.factor}, got {self.size}.")
        wanted = (4 * self.vae.z_dim, 2 * self.vae.z_dim + self.vae.frames_per_latent)
        if (self.generator.in_channels, self.inpainter.in_channels) != wanted:
            found = (self.generator.in_channels, self.inpainter.in_channels)
            raise ValueError(f"Generator and inpainter need {wanted} input channels with this VAE, got {found}.")

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """(frames, height, width) of a latent."""
        frames = 1 + (self.frames - 1) // self.vae.frames_per_latent
        return frames, self.size[0] // self.vae.factor, self.size[1] // self.vae.factor

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MoRe4DConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: an unknown name.
        """
        parts = dict(values)
        _refuse_unknown(cls, parts)
        parts["vae"] = _made(VaeConfig, parts["vae"])
        for name in ("generator", "inpainter"):
            entry = dict(parts[name])
            entry["prior"] = None if entry.get("prior") is None else _made(PriorConfig, entry["prior"])
            parts[name] = _made(TransformerConfig, entry)
        parts["text"] = None if parts.get("text") is None else _made(TextConfig, parts["text"])
        return cls(**_tuples(parts))


def _made(kind: type, values: dict[str, Any]) -> Any:
    _refuse_unknown(kind, values)
    return kind(**_tuples(values))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _refuse_unknown(kind: type, values: dict[str, Any]) -> None:
    unknown = sorted(set(values) - {entry.name for entry in fields(kind)})
    if unknown:
        raise ValueError(f"{kind.__name__} has no setting {unknown[0]!r}; the configuration is of another version.")


PUBLISHED_FOCAL = (720 / 960 * 512 / 368, 1.0)
"""What published weights were normalised with: the heuristic for 720x960 pictures at 368x512 (spec 1.3, section 7)."""


def paper_config() -> MoRe4DConfig:
    """The published networks: 17.1 billion parameters in the generator, 16.4 in the inpainter."""
    return MoRe4DConfig(focal=PUBLISHED_FOCAL, reference="zeros")


def wan_1_3b_config() -> MoRe4DConfig:
    """On Wan2.1-Fun-V1.1-1.3B: 1.6 billion parameters in the generator."""
    generator = TransformerConfig(heads=12, layers=30, ffn_dim=8960)
    return MoRe4DConfig(
        generator=generator, inpainter=replace(generator, in_channels=36, reference_tokens=False, prior=None)
    )


def mini_config() -> MoRe4DConfig:
    """The embedded size: 7.5 million parameters, 32x48, 9 frames, a latent cell for 4x4 pixels and 2 frames.

    What is trained at a time (3.8 M at most) keeps a checkpoint with averages and moments below 60 MiB.
    """
    vae = VaeConfig(
        base_dim=32, widths=(1, 1), z_dim=12, blocks=1, time_halvings=(True,), adaptor_dim=16, adaptor_groups=4,
        gain=4.0, residual=True, patch=2, bypass=True, shortcuts=True, save_memory=False,
    )  # fmt: skip
    prior = PriorConfig(
        dim=96, depth=4, heads=4, image_size=64, patch=8, frames=2, decoder_dim=64, decoder_depth=1, decoder_heads=4
    )
    generator = TransformerConfig(
        heads=4, head_dim=48, layers=5, ffn_dim=576, in_channels=48, out_channels=12, text_dim=64, image_dim=None,
        prior=prior,
    )  # fmt: skip
    return MoRe4DConfig(
        vae=vae,
        generator=generator,
        inpainter=replace(generator, in_channels=26, reference_tokens=False, prior=None, layers=4),
        text=TextConfig(),
        size=(32, 48),
        frames=9,
        stills="frame",
        deterministic=True,
    )
