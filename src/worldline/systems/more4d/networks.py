"""All of MoRe4D's networks: autoencoder, generator (4D-STraG), inpainter (4D-ViSM), encoders of texts and images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldline.systems.more4d import transformer
from worldline.systems.more4d.config import MoRe4DConfig
from worldline.systems.more4d.encoders import ClipImages, WordEncoder
from worldline.systems.more4d.vae import MotionVae


class MoRe4D(nn.Module):
    """The model.

    Attributes:
        config: its sizes.
        vae: trajectories, pictures and depth <-> latents.
        generator: predicts the velocity of trajectory latents.
        inpainter: predicts the velocity of video latents.
        text: strings -> rows; None: only empty texts are known, as rows of zeros.
        image: pictures -> rows for transformers with an image context; None: rows of zeros.
    """

    def __init__(self, config: MoRe4DConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = MotionVae(config.vae)
        self.generator = transformer.WanTransformer4D(**transformer.arguments(config.generator))
        self.inpainter = transformer.WanTransformer4D(**transformer.arguments(config.inpainter))
        self.text: nn.Module | None = None if config.text is None else WordEncoder(config.text)
        self.image: ClipImages | None = None

    @property
    def device(self) -> torch.device:
        """Where it works: that of the autoencoder, which is small and always there."""
        return self.vae.mean.device

    def asked_between_steps(self) -> list[nn.Module]:
        """What encodes samples before a training step: autoencoder, motion prior, encoders of texts and images."""
        prior = [self.generator.omnimae_extractor] if self.generator.guided else []
        return [self.vae, *prior, *(encoder for encoder in (self.text, self.image) if encoder is not None)]

    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "B L E"]:
        """Rows of texts for both transformers.

        Raises:
            ValueError: there is no text encoder and a text is not empty.
        """
        if self.text is not None:
            return self.text(texts)
        if any(texts):
            raise ValueError("This model has no text encoder; give it one (`model.text`), or no prompt.")
        return torch.zeros(len(texts), 1, self.config.generator.text_dim, device=self.device)


def build(config: MoRe4DConfig, *, meta: bool = False) -> MoRe4D:
    """The networks with random weights, or without memory on the meta device."""
    with torch.device("meta" if meta else "cpu"):
        return MoRe4D(config)
