"""What the transformers are trained on, encoded once: latents of samples, and a folder that keeps them.

The autoencoder, the motion prior and a published text encoder are frozen while the transformers learn, so what they say
about a sample is the same in every epoch (spec 9, 32 and 33: the published trainers encode 98 equal frames per sample
and step).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldline.io.atomic import atomic_file
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.representation import (
    depth_picture,
    inpainter_conditions,
    still,
    to_channels,
)
from worldline.systems.more4d.samples import FillSamples, MotionSamples
from worldline.systems.more4d.vae import Posterior


@dataclass(frozen=True, kw_only=True)
class MotionLatents:
    """`MotionSamples` as the generator sees them.

    Attributes:
        mean, logvar: [B, Z, t, h, w] posterior of the normalised motion.
        control, depth: [B, Z, s, h, w] picture and depth that stand still; s is t, or 1 for one that is repeated.
        features: [B, N, F] of the motion prior; None for a generator without one.
        captions: one per sample.
    """

    mean: Float[Tensor, "B Z t h w"]
    logvar: Float[Tensor, "B Z t h w"]
    control: Float[Tensor, "B Z s h w"]
    depth: Float[Tensor, "B Z s h w"]
    features: Float[Tensor, "B N F"] | None
    captions: tuple[str, ...]

    @property
    def posterior(self) -> Posterior:
        """What the latents of the motion are drawn from."""
        return Posterior(mean=self.mean, logvar=self.logvar)


@dataclass(frozen=True, kw_only=True)
class FillLatents:
    """`FillSamples` as the inpainter sees them.

    Attributes:
        mean, logvar: [B, Z, t, h, w] posterior of the true video.
        conditions: [B, S + Z, t, h, w] known or not, and the masked rendering.
        context: [B, K, I] rows of the first frame; None for a model without an image encoder.
        captions: one per sample.
    """

    mean: Float[Tensor, "B Z t h w"]
    logvar: Float[Tensor, "B Z t h w"]
    conditions: Float[Tensor, "B C t h w"]
    context: Float[Tensor, "B K I"] | None
    captions: tuple[str, ...]

    @property
    def posterior(self) -> Posterior:
        """What the latents of the video are drawn from."""
        return Posterior(mean=self.mean, logvar=self.logvar)


@torch.no_grad()
def encode_motion(model: MoRe4D, samples: MotionSamples) -> MotionLatents:
    """Samples through the frozen networks."""
    vae, sizes = model.vae, model.config
    image = samples.image.movedim(-1, 1)
    posterior = vae.encode(to_channels(samples.motion))
    frames = 1 if sizes.stills == "frame" else sizes.frames
    return MotionLatents(
        mean=posterior.mean,
        logvar=posterior.logvar,
        control=still(vae, 2 * image - 1, frames, sizes.stills),
        depth=still(vae, depth_picture(samples.depth), frames, sizes.stills),
        features=model.generator.look(image) if model.generator.guided else None,
        captions=samples.captions,
    )


@torch.no_grad()
def encode_fill(model: MoRe4D, samples: FillSamples) -> FillLatents:
    """Samples through the frozen networks."""
    posterior = model.vae.encode_video(2 * to_channels(samples.video) - 1)
    rendered = 2 * to_channels(samples.rendered) - 1
    return FillLatents(
        mean=posterior.mean,
        logvar=posterior.logvar,
        conditions=inpainter_conditions(model.vae, rendered, samples.known[:, None]),
        context=None if model.image is None else model.image(samples.video[:, 0].movedim(-1, 1)),
        captions=samples.captions,
    )


def fingerprint(*networks: nn.Module) -> str:
    """Short hash of the weights that latents depend on."""
    digest = hashlib.sha256()
    for network in networks:
        for key, value in network.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A folder of tensors by name: made once, by whichever process comes first, and read ever after.

    Attributes:
        folder: where the files are.
    """

    folder: Path

    def get(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a name; what is made is also read back, so that every epoch sees the same rounding."""
        from safetensors.torch import load_file, save_file

        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            made = {key: value.detach().cpu().contiguous() for key, value in make().items()}
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as draft:
                save_file(made, draft)
        return load_file(path)


class RememberedTexts(nn.Module):
    """A frozen text encoder that encodes each text once, and need not be in memory for texts it knows.

    Attributes:
        encoder: strings -> rows; None once everything is known.
        kept: where the rows are.
    """

    def __init__(self, encoder: nn.Module | None, folder: Path) -> None:
        super().__init__()
        self.encoder = encoder
        self.kept = Kept(folder=folder)

    @torch.no_grad()
    def forward(self, texts: tuple[str, ...] | list[str]) -> Float[Tensor, "B L E"]:
        """Rows of texts.

        Raises:
            ValueError: a text is not known and there is no encoder.
        """
        return torch.cat([self._rows(text) for text in texts])

    def _rows(self, text: str) -> Tensor:
        def encode() -> dict[str, Tensor]:
            if self.encoder is None:
                raise ValueError(f"The text {text[:60]!r} was not encoded beforehand, and there is no text encoder.")
            return {"rows": self.encoder([text])}

        return self.kept.get(hashlib.sha256(text.encode()).hexdigest()[:24], encode)["rows"]
