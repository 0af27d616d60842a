"""MoRe4D's weights: published files under their own names, bases to start from, and our own checkpoints.

    4D-STraG/diffusion_pytorch_model*.safetensors     the whole generator, motion prior included
    4D-ViSM/lora_diffusion_pytorch_model.safetensors  additions to Wan2.1-Fun-V1.1-14B-InP
    VAE/{vae,encoder_prompt,decoder_prompt}/          the autoencoder and its adaptors

Everything is strict: a folder that holds nothing readable, a missing or an unknown key is an error. Networks are built
without memory and tensors put in one by one, so that a load needs the size of the weights once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldline.io import tensors
from worldline.io.ledger import sha256
from worldline.systems.more4d import lora, published, transformer
from worldline.systems.more4d.config import MoRe4DConfig, TransformerConfig, VaeConfig
from worldline.systems.more4d.encoders import ClipImages, Umt5
from worldline.systems.more4d.networks import MoRe4D, build
from worldline.systems.more4d.transformer import WanTransformer4D, restore_tables, widened
from worldline.systems.more4d.vae import MotionVae
from worldline.training import export as exporting

ADDED = ("ref_conv.", "feature_adapter.", "omnimae_extractor.")
"""What a base of Wan may lack; guidance modules inside blocks, too."""


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key table of a network."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


Places = Callable[[str], torch.device]
"""Where a parameter goes, by its name."""


def on_cpu(name: str) -> torch.device:
    """Everything into memory."""
    return torch.device("cpu")


def load_transformer(
    folder: Path, config: TransformerConfig, *, dtype: torch.dtype | None = None, places: Places = on_cpu
) -> WanTransformer4D:
    """A whole transformer from safetensors in published or diffusers naming, one tensor at a time.

    Args:
        folder: one file, or shards.
        config: sizes.
        dtype: None keeps the file's.
        places: of parameters; with several devices, wrap the result in `placement.dispatched`.

    Raises:
        WeightsError: missing, damaged, or keys and shapes that do not fit the configuration.
    """
    from accelerate.utils import set_module_tensor_to_device

    model = transformer.build(config, meta=True)
    files, expected = tensors.model_files(folder), shapes(model)
    for key, value in tensors.stream(files, expected, rename=published.transformer_key, dtype=dtype):
        set_module_tensor_to_device(model, key, places(key), value=value, dtype=value.dtype)
    return restore_tables(model).requires_grad_(False).eval()


@torch.no_grad()
def start_from_base(model: WanTransformer4D, folder: Path) -> list[str]:
    """Give a transformer the weights of a Wan base, in published or diffusers naming; returns what stays random.

    A patch embedding with fewer input channels is widened with zeros; only additions to the stock model may be missing.
    Tensors are copied one by one.

    Raises:
        WeightsError: anything else is missing, unknown, or of another shape.
    """
    files, own = tensors.model_files(folder), shapes(model)
    expected, missing = fitting(str(folder), own, files)
    patch, channels = "patch_embedding.weight", own["patch_embedding.weight"][1]
    state = model.state_dict()
    for key, value in tensors.stream(files, expected, rename=published.transformer_key):
        state[key].copy_(widened(value, channels) if key == patch else value)
    return missing


def fitting(
    name: str, own: Mapping[str, tuple[int, ...]], files: list[Path]
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Shapes that the files of a Wan base must have for a transformer, and what of the transformer they lack.

    Raises:
        WeightsError: more than additions to the stock model is missing, unknown, or of another shape.
    """
    found = {published.transformer_key(key): shape for file in files for key, shape in tensors.header(file).items()}
    missing = [key for key in own if key not in found]
    if any(not key.startswith(ADDED) and ".spatial_guidance_" not in key for key in missing):
        tensors.check(name, own, found)
    expected = {key: shape for key, shape in own.items() if key in found}
    patch = "patch_embedding.weight"
    expected[patch] = (own[patch][0], min(found[patch][1], own[patch][1]), *own[patch][2:])
    tensors.check(name, expected, found)
    return expected, missing


def load_vae(folder: Path, config: VaeConfig) -> MotionVae:
    """The published autoencoder from its folder with `vae`, `encoder_prompt` and `decoder_prompt`, in float32.

    Raises:
        WeightsError: a part is missing, has nothing readable in it, or does not fit.
    """
    model = MotionVae(config)
    renames: dict[str, Callable[[str], str]] = {
        "vae": lambda key: "vae." + published.vae_key(key, config.blocks),
        "encoder_prompt": lambda key: published.trajectory_key(key, encoder=True),
        "decoder_prompt": lambda key: published.trajectory_key(key, encoder=False),
    }
    state: dict[str, Tensor] = {}
    for name, rename in renames.items():
        state |= {rename(key): value.float() for key, value in part(folder / name).items()}
    tensors.check(str(folder), shapes(model), {key: tuple(value.shape) for key, value in state.items()})
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def part(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: safetensors, or PyTorch's own format read as plain tensors, without running code.

    Raises:
        WeightsError: no such folder, or nothing readable in it.
    """
    if not folder.is_dir():
        raise tensors.WeightsError(f"{folder} is missing; the VAE needs vae, encoder_prompt and decoder_prompt.")
    files = tensors.model_files(folder) if list(folder.glob("*.safetensors")) else []
    files = files or sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
    if not files:
        raise tensors.WeightsError(f"{folder} holds neither .safetensors nor .bin files; nothing would be loaded.")
    return {key: value for file in files for key, value in plain(file).items()}


def plain(file: Path) -> dict[str, Tensor]:
    """The table of tensors in one file; PyTorch's own format is mapped into memory, and no code in it is run.

    Raises:
        WeightsError: there is no such file, or there is something else in it.
    """
    if not file.is_file():
        raise tensors.WeightsError(f"There is no {file}.")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors.header(file)
        return load_file(file)
    loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise tensors.WeightsError(f"{file} is no plain table of tensors; convert it to safetensors.")
    return loaded


def load_text(file: Path, config: Any, tokenizer: Any) -> Umt5:
    """The text encoder from umT5's original file, or from a folder of transformers, with transformers' tokenizer.

    `config` is a `UMT5Config`.

    Raises:
        WeightsError: missing, or keys and shapes that do not fit.
    """
    from transformers import UMT5EncoderModel

    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    if file.is_dir():
        state = part(file)
        state["shared.weight"] = state.get("shared.weight", state.get("encoder.embed_tokens.weight", torch.empty(0)))
    else:
        state = {published.text_key(key): value for key, value in plain(file).items()}
    state["encoder.embed_tokens.weight"] = state.get("shared.weight", torch.empty(0))  # one table under two names
    _fill(encoder, state, file)
    return Umt5(encoder.eval(), tokenizer)


def load_image(file: Path, config: Any) -> ClipImages:
    """The image encoder from CLIP's original file, or from a folder of transformers; anything else in it is left alone.

    `config` is a `CLIPVisionConfig`.

    Raises:
        WeightsError: missing, or keys and shapes that do not fit.
    """
    from transformers import CLIPVisionModel

    encoder = CLIPVisionModel(config)
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in encoder.state_dict()) else ""
    state: dict[str, Tensor] = {}
    if file.is_dir():
        names = {prefix + key.removeprefix("vision_model."): value for key, value in part(file).items()}
        _fill(encoder, {k: v for k, v in names.items() if not k.endswith(("visual_projection.weight", "_ids"))}, file)
        return ClipImages(encoder.eval())
    for key, value in plain(file).items():
        state |= {prefix + name: entry for name, entry in published.image_tensors(key, value).items()}
    _fill(encoder, state, file)
    return ClipImages(encoder.eval())


def _fill(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    tensors.check(str(file), shapes(network), {key: tuple(value.shape) for key, value in state.items()})
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False)


def merge_lora(model: WanTransformer4D, file: Path, weight: float = lora.SHIPPED_WEIGHT) -> None:
    """Add the published additions to an inpainter.

    Raises:
        WeightsError: damaged.
        ValueError: it is for another transformer.
    """
    lora.merge(model, plain(file), weight)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to run.

    Attributes:
        model: the networks, in evaluation mode.
        sha256: hash of its file.
        card: what its maker says about it.
    """

    model: MoRe4D
    sha256: str
    card: dict[str, Any] = field(default_factory=dict)


def export(model: MoRe4D, path: Path, card: Mapping[str, Any]) -> Path:
    """Write weights as fp16 safetensors (constants of latents in float32) and their JSON.

    See `training.export`.
    """
    exact = ("vae.mean", "vae.std", "vae.motion_mean", "vae.motion_std")
    return exporting.export(model.state_dict(), path, model.config.to_dict(), card, exact=exact)


def load_file(path: Path, *, dtype: torch.dtype = torch.float32) -> Loaded:
    """A checkpoint written by `export`.

    Raises:
        FileNotFoundError: the file or the JSON of its name is not there.
        WeightsError: damaged, or keys that do not fit its configuration.
    """
    for needed in (path, path.with_suffix(".json")):
        if not needed.is_file():
            raise FileNotFoundError(f"There is no {needed}; a checkpoint is a .safetensors file and its .json.")
    card = json.loads(path.with_suffix(".json").read_text())
    if card.get("sha256") != (found := sha256(path)):
        raise tensors.WeightsError(f"{path} is not the file that its JSON describes; get both again.")
    model = build(MoRe4DConfig.from_dict(card["config"]))
    model.load_state_dict(tensors.read([path], shapes(model), dtype=dtype), strict=True)
    model.requires_grad_(False)
    return Loaded(model=model.eval(), sha256=found, card=card)
