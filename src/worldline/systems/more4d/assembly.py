"""The whole published MoRe4D from its files: MoGe4D's own, and those of the Wan base that they were trained from.

    FOLDER/4D-STraG/diffusion_pytorch_model*.safetensors        the generator, whole
    FOLDER/4D-ViSM/lora_diffusion_pytorch_model.safetensors     additions to the inpainter
    FOLDER/VAE/{vae,encoder_prompt,decoder_prompt}/             the autoencoder
    BASE/diffusion_pytorch_model*.safetensors                   the inpainter, in Wan's own names, or
    BASE/transformer/                                           in diffusers' names
    BASE/models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl/      text encoder and tokenizer, or
    BASE/text_encoder/, tokenizer/                              in transformers' names
    BASE/models_clip_*.pth, or image_encoder/                   image encoder

BASE is FOLDER/base, or the published repository. Weights go straight to where they will be, tensor by tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldline.io import tensors
from worldline.io.ledger import Licence
from worldline.io.weights import Resolved, Weights, fingerprint, is_local, resolve
from worldline.systems.more4d import placement, pretrained, transformer
from worldline.systems.more4d.config import MoRe4DConfig, TransformerConfig, paper_config
from worldline.systems.more4d.encoders import ClipImages, Umt5
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.vae import MotionVae
from worldline.systems.system import Offload

REPO, BASE_REPO = "Yanran21/MoGe4D", "alibaba-pai/Wan2.1-Fun-V1.1-14B-InP"
LICENCE = Licence(
    name="MoGe4D",
    url=f"https://huggingface.co/{REPO}",
    text=(
        "Its authors publish the code under MIT and state no licence of the weights; they hold OmniMAE's weights "
        "(CC BY-NC 4.0, no commercial use) and derive from Wan2.1-Fun (Apache-2.0)."
    ),
)
BASE_LICENCE = Licence(
    name="Wan2.1-Fun", url=f"https://huggingface.co/{BASE_REPO}", text="Apache-2.0.", must_accept=False
)
OWN = Weights(
    system="more4d",
    repo=REPO,
    subfolders=(),
    licence=LICENCE,
    files=(
        "4D-STraG/diffusion_pytorch_model*.safetensors",
        "4D-ViSM/lora_diffusion_pytorch_model.safetensors",
        "VAE/vae/*.bin",
        "VAE/encoder_prompt/*.bin",
        "VAE/decoder_prompt/*.bin",
    ),
)
BASE = Weights(
    system="more4d",
    repo=BASE_REPO,
    subfolders=(),
    licence=BASE_LICENCE,
    files=(
        "diffusion_pytorch_model*.safetensors",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "models_clip_*.pth",
        "google/umt5-xxl/*",
    ),
)
UMT5 = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
"""Sizes of umT5-xxl; the other values are transformers' defaults."""

CLIP = {
    "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1024, "num_hidden_layers": 32,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the published networks; a folder with other ones says so in its worldline.json.

    Attributes:
        networks: transformers and autoencoder.
        text, image: values of transformers' UMT5Config and CLIPVisionConfig.
    """

    networks: MoRe4DConfig
    text: Mapping[str, Any]
    image: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Sizes:
        """From a folder's worldline.json, if it has one: {"networks", "text", "image"}."""
        path = folder / "worldline.json"
        if not path.is_file():
            return cls(networks=paper_config(), text=UMT5, image=CLIP)
        said = json.loads(path.read_text())
        return cls(networks=MoRe4DConfig.from_dict(said["networks"]), text=said["text"], image=said["image"])

    def meta(self) -> MoRe4D:
        """The networks that these sizes mean, without memory."""
        from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

        with torch.device("meta"):
            model = MoRe4D(self.networks)
            model.text = Umt5(UMT5EncoderModel(UMT5Config(**self.text)), None)
            model.image = ClipImages(CLIPVisionModel(CLIPVisionConfig(**self.image)))
        return model


def find(weights: str | None, *, accept_license: bool, download: bool = True) -> tuple[Resolved, Resolved]:
    """Both sets of files: in a folder with `base` inside, or on the hub.

    Raises:
        WeightsError: see `io.weights.resolve`.
    """
    own = resolve(OWN, source=weights, accept_license=accept_license, download=download)
    local = weights is not None and is_local(weights)
    folder = own.folder / "base"
    if local and not folder.is_dir():
        raise tensors.WeightsError(f"{folder} is missing; put the files of {BASE_REPO} there, or a link to them.")
    base = BASE if not (folder / "transformer").is_dir() else _diffusers_base()
    return own, resolve(base, source=folder if local else None, accept_license=accept_license, download=download)


def _diffusers_base() -> Weights:
    files = ("transformer/*.safetensors", "text_encoder/*.safetensors", "image_encoder/*.safetensors", "tokenizer/*")
    return Weights(system="more4d", repo="a diffusers folder", subfolders=(), licence=BASE_LICENCE, files=files)


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A model ready to run.

    Attributes:
        model: the networks.
        sha256: of all files.
        mode: how it is placed.
    """

    model: MoRe4D
    sha256: str
    mode: Offload


def load(
    weights: str | None,
    device: torch.device,
    free: Mapping[str, int],
    *,
    mode: Offload = "auto",
    dtype: torch.dtype = torch.bfloat16,
    accept_license: bool = False,
) -> Assembled:
    """The published model.

    Args:
        weights: folder, or another repository of the same layout; None: the published ones.
        device: that computes.
        free: bytes free on each GPU, by name; empty on a CPU.
        mode: of placement; "auto" is the fastest that fits.
        dtype: of transformers and encoders; the autoencoder is float32.
        accept_license: whether the licence is accepted.

    Raises:
        WeightsError: files are missing, damaged, or do not fit.
        ValueError: it does not fit in the mode asked for.
    """
    own, base = find(weights, accept_license=accept_license)
    sizes = Sizes.of(own.folder)
    meta = sizes.meta().to(dtype)
    if mode == "auto":
        found = placement.networks(meta)
        mode = placement.choose({name: placement.size_bytes(network) for name, network in found.items()}, free)
    maps: dict[str, Mapping[str, str]] = {}
    if mode == "sharded":
        share = {name: size // 2 for name, size in free.items()}  # generator and inpainter are there together
        maps = {name: placement.device_map(getattr(meta, name), share) for name in ("generator", "inpainter")}
    model = _filled(own.folder, base.folder, sizes, dtype, maps)
    return Assembled(model=placement.placed(model, device, mode, maps), sha256=fingerprint(own, base), mode=mode)


def _filled(own: Path, base: Path, sizes: Sizes, dtype: torch.dtype, maps: Mapping[str, Mapping[str, str]]) -> MoRe4D:
    """All networks with their weights; those without a device map in memory."""

    def transformer_of(folder: Path, name: str, config: TransformerConfig) -> transformer.WanTransformer4D:
        places = placement.places(maps[name]) if name in maps else pretrained.on_cpu
        return pretrained.load_transformer(folder, config, dtype=dtype, places=places)

    diffusers = (base / "transformer").is_dir()
    model = _Parts(sizes.networks)
    model.vae = pretrained.load_vae(own / "VAE", sizes.networks.vae)
    model.generator = transformer_of(own / "4D-STraG", "generator", sizes.networks.generator)
    model.inpainter = transformer_of(base / "transformer" if diffusers else base, "inpainter", sizes.networks.inpainter)
    pretrained.merge_lora(model.inpainter, own / "4D-ViSM" / "lora_diffusion_pytorch_model.safetensors")
    model.text, model.image = _encoders(base, sizes, dtype, diffusers)
    return model.requires_grad_(False).eval()


class _Parts(MoRe4D):
    """A model whose networks are put in one by one."""

    def __init__(self, config: MoRe4DConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.vae: MotionVae
        self.generator: transformer.WanTransformer4D
        self.inpainter: transformer.WanTransformer4D


def _encoders(base: Path, sizes: Sizes, dtype: torch.dtype, diffusers: bool) -> tuple[Umt5, ClipImages]:
    """Text and image encoder of a base in either layout."""
    from transformers import AutoTokenizer, CLIPVisionConfig, UMT5Config

    tokenizer_folder = base / ("tokenizer" if diffusers else "google/umt5-xxl")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    text_config, image_config = UMT5Config(**sizes.text), CLIPVisionConfig(**sizes.image)
    if diffusers:
        text = pretrained.load_text(base / "text_encoder", text_config, tokenizer)
        image = pretrained.load_image(base / "image_encoder", image_config)
    else:
        text = pretrained.load_text(base / "models_t5_umt5-xxl-enc-bf16.pth", text_config, tokenizer)
        image = pretrained.load_image(next(iter(sorted(base.glob("models_clip_*.pth")))), image_config)
    return text.to(dtype), image.to(dtype)
