"""What a training at full size begins with: Wan's bases, the motion prior and the autoencoder, read when asked for.

    FOLDER/generator/    Wan2.1-Fun-V1.1-*-Control: diffusion_pytorch_model*.safetensors, published or diffusers' names
    FOLDER/inpainter/    Wan2.1-Fun-V1.1-*-InP, the same
    FOLDER/prior/        OmniMAE: one file of plain tensors, "trunk.*" and "head.*"
    FOLDER/vae/          Wan 2.1's autoencoder, in its own or diffusers' names

Any of them may be missing, and then begins random. Tensors are read one by one while a model is filled, so that the
start of a training needs the size of the model and of one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from worldline.io import tensors
from worldline.systems.more4d import pretrained, published
from worldline.systems.more4d.config import MoRe4DConfig
from worldline.systems.more4d.networks import build
from worldline.systems.more4d.transformer import widened

PATCH = "patch_embedding.weight"


@dataclass(frozen=True, kw_only=True)
class StartingWeights(Mapping[str, Tensor]):
    """Weights by the model's names, for `stages.run(prior=...)`; a value is read from its file each time.

    Attributes:
        folder: with the parts above.
        networks: what is trained.
    """

    folder: Path
    networks: MoRe4DConfig

    def __post_init__(self) -> None:
        """Refuse a folder that has none of the parts, or parts that do not fit.

        Raises:
            WeightsError: naming what is wrong.
        """
        if not self._places and not self._small:
            raise tensors.WeightsError(
                f"{self.folder} has no generator, inpainter, prior or vae folder to begin a training with."
            )

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from self._small

    def __len__(self) -> int:
        return len(self._places) + len(self._small)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._small:
            return self._small[name]
        from safetensors import safe_open

        file, key = self._places[name]
        with safe_open(file, framework="pt") as opened:
            value = opened.get_tensor(key)
        network, own = name.split(".", 1)
        return widened(value, getattr(self.networks, network).in_channels) if own == PATCH else value

    @cached_property
    def _places(self) -> dict[str, tuple[Path, str]]:
        """File and key of every tensor of the transformers."""
        found: dict[str, tuple[Path, str]] = {}
        meta = build(self.networks, meta=True)
        for network in ("generator", "inpainter"):
            if not (self.folder / network).is_dir():
                continue
            own = pretrained.shapes(getattr(meta, network))
            files = tensors.model_files(self.folder / network)
            pretrained.fitting(str(self.folder / network), own, files)
            for file in files:
                for key in tensors.header(file):
                    found[f"{network}.{published.transformer_key(key)}"] = (file, key)
        return found

    @cached_property
    def _small(self) -> dict[str, Tensor]:
        """Tensors of the motion prior and the autoencoder."""
        found: dict[str, Tensor] = {}
        if (self.folder / "prior").is_dir():
            prior = pretrained.part(self.folder / "prior")
            found |= {f"generator.omnimae_extractor.{key}": value for key, value in prior.items()}
        if (self.folder / "vae").is_dir():
            blocks, stored = self.networks.vae.blocks, pretrained.part(self.folder / "vae")
            found |= {f"vae.vae.{published.vae_key(key, blocks)}": value for key, value in stored.items()}
        return found
