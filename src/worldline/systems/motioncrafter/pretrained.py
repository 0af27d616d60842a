"""Weights of MotionCrafter: the published layout on the hub or in folders, and our own single-file checkpoints.

    TencentARC/MotionCrafter                           geometry_motion_vae/  unet_determ/ or unet_diff/
    stabilityai/stable-video-diffusion-img2vid-xt      image_encoder/  vae/ (its encoder only)

Sizes are read from the config.json files, channels and fusion from the tensors (spec 2). Every key and shape is
checked, of the geometry encoders too, which are not loaded for inference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldline.io import tensors
from worldline.io.ledger import Licence, sha256
from worldline.io.weights import (
    Described,
    Resolved,
    Weights,
    check_hashes,
    describe,
    describe_remote,
    find,
    fingerprint,
    is_local,
    resolve,
)
from worldline.scene import Progress, no_progress
from worldline.systems.motioncrafter.config import (
    AutoencoderConfig,
    Fusion,
    ImageEncoderConfig,
    MotionCrafterConfig,
    Paradigm,
    UNetConfig,
)
from worldline.systems.motioncrafter.networks import MotionCrafter, build

REPO = "TencentARC/MotionCrafter"
SVD_REPO = "stabilityai/stable-video-diffusion-img2vid-xt"

LICENCE = Licence(
    name="MotionCrafter",
    url=f"https://huggingface.co/{REPO}",
    text=(
        "Code and weights are for academic purposes only, no commercial or production use, and are not intended for "
        "use within the European Union; the weights derive from Stable Video Diffusion."
    ),
)
SVD_LICENCE = Licence(
    name="Stable Video Diffusion",
    url=f"https://huggingface.co/{SVD_REPO}",
    text="Stability AI's licence of Stable Video Diffusion XT: read it at the address before commercial use.",
)

UNET_FOLDERS: dict[Paradigm, str] = {"deterministic": "unet_determ", "denoising": "unet_diff"}
VAE_FOLDER = "geometry_motion_vae"
IGNORED = {"vae": ("decoder.",), "image_encoder": ("vision_model.embeddings.position_ids",)}
"""What the SVD files hold and we do not need."""

LEGACY = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the VAE's attention in old diffusers files."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to run.

    Attributes:
        model: the networks, in evaluation mode.
        sha256: hash of everything it was made of.
        card: what its maker says about it (metrics, unreliable outputs); empty for published weights.
    """

    model: MotionCrafter
    sha256: str
    card: dict[str, Any] = field(default_factory=dict)


def weights(paradigm: Paradigm = "deterministic") -> tuple[Weights, Weights]:
    """What to get from the hub for one paradigm."""
    ours = Weights(system="motioncrafter", repo=REPO, subfolders=(VAE_FOLDER, UNET_FOLDERS[paradigm]), licence=LICENCE)
    svd = Weights(
        system="motioncrafter",
        repo=SVD_REPO,
        subfolders=("image_encoder", "vae"),
        licence=SVD_LICENCE,
        variant="fp16",
    )
    return ours, svd


def resolve_all(
    paradigm: Paradigm = "deterministic",
    *,
    source: str | Path | None = None,
    accept_license: bool = False,
    download: bool = True,
    progress: Progress = no_progress,
) -> tuple[Resolved, Resolved]:
    """Both repositories on this machine; a local `source` folder may hold the SVD subfolders too.

    Raises:
        WeightsError: see `io.weights.resolve`.
    """
    ours, svd = weights(paradigm)
    has_svd = source is not None and all((Path(source) / name).is_dir() for name in svd.subfolders)
    options: dict[str, Any] = {"accept_license": accept_license, "download": download, "progress": progress}
    return resolve(ours, source=source, **options), resolve(svd, source=source if has_svd else None, **options)


def describe_all(
    paradigm: Paradigm = "deterministic", *, source: str | Path | None = None, remote: bool = False
) -> Described:
    """Configs and key tables of all four models; of local files unless `remote`, where only headers are read.

    Raises:
        WeightsError: something is missing or cannot be reached.
    """
    ours, svd = weights(paradigm)
    local = source is not None and is_local(source)
    if source is not None and not local:
        ours = replace(ours, repo=str(source), sha256={})
    if remote and not local:
        return describe_remote(ours).joined(describe_remote(svd))
    if local:
        folder = Path(source or "")
        has_svd = all((folder / name).is_dir() for name in svd.subfolders)
        described = describe(ours, folder)
        return described.joined(describe(svd, folder) if has_svd else _described_here(svd))
    return _described_here(ours).joined(_described_here(svd))


def _described_here(part: Weights) -> Described:
    folder = find(part)
    if folder is None:
        raise tensors.WeightsError(f"{part.repo} is not on this machine; download it, or verify with --remote.")
    check_hashes(part, folder)
    return describe(part, folder)


def load(
    paradigm: Paradigm = "deterministic",
    *,
    source: str | Path | None = None,
    accept_license: bool = False,
    encoders: bool = False,
    dtype: torch.dtype | None = torch.float16,
    progress: Progress = no_progress,
) -> Loaded:
    """The published model.

    The U-Net and the image encoder are in `dtype` (None: as stored); both VAEs are in float32, as SD-type VAEs overflow
    in half precision. `encoders=True` keeps the geometry VAE's encoders, for training.

    Raises:
        WeightsError: nothing to load, licence not accepted, or keys and shapes that do not fit.
    """
    # 1. files, and what they say about themselves
    ours, svd = resolve_all(paradigm, source=source, accept_license=accept_license, progress=progress)
    described = describe(ours.weights, ours.folder).joined(describe(svd.weights, svd.folder))
    # 2. every key and shape, of the parts that are not loaded too
    config = read_config(described, paradigm)
    for name, difference in differences(described, config).items():
        tensors.refuse(name, difference)
    # 3. networks without memory, then their weights
    model = build(config, meta=True, encoders=encoders)
    _fill(model.unet, ours, UNET_FOLDERS[paradigm], dtype)
    _fill(model.vae, ours, VAE_FOLDER, torch.float32, ignored=("encoder", "quant_conv"))
    _fill(model.rgb_vae, svd, "vae", torch.float32)
    _fill(model.image_encoder, svd, "image_encoder", dtype)
    return Loaded(model=model.eval(), sha256=fingerprint(ours, svd))


def read_config(described: Described, paradigm: Paradigm) -> MotionCrafterConfig:
    """The configuration of published files: sizes from config.json, channels and fusion from the tensors.

    Raises:
        WeightsError: the U-Net is made for another paradigm than its folder says.
    """
    unet_folder = UNET_FOLDERS[paradigm]
    unet_keys = {key: shape or () for key, shape in described.tables[unet_folder].items()}
    vae_keys = {key: shape or () for key, shape in described.tables[VAE_FOLDER].items()}
    vae = _autoencoder(described.configs[VAE_FOLDER])
    config = MotionCrafterConfig(
        vae=vae,
        rgb_vae=_autoencoder(described.configs["vae"]),
        unet=_unet(described.configs[unet_folder]),
        image_encoder=ImageEncoderConfig(**_known(ImageEncoderConfig(), described.configs["image_encoder"])),
        fusion=_fusion(vae_keys, unet_keys, vae.latent_channels),
        paradigm=paradigm,
        scaling_factor=described.configs[VAE_FOLDER].get("scaling_factor", MotionCrafterConfig().scaling_factor),
    )
    if unet_keys.get("conv_in.weight") and unet_keys["conv_in.weight"][1] != config.unet_in_channels:
        raise tensors.WeightsError(
            f"The U-Net in {unet_folder} reads {unet_keys['conv_in.weight'][1]} channels, the {paradigm} one reads "
            f"{config.unet_in_channels}; is it the other U-Net under this name?"
        )
    return config


def differences(described: Described, config: MotionCrafterConfig) -> dict[str, tensors.Difference]:
    """How the files differ from the networks of this configuration, by subfolder; nothing is allocated."""
    return {
        name: tensors.compare(
            expected,
            {modern(key): shape for key, shape in described.tables[name].items()},
            IGNORED.get(name, ()),
        )
        for name, expected in expected_tables(config).items()
    }


def _autoencoder(values: Mapping[str, Any]) -> AutoencoderConfig:
    return AutoencoderConfig(**_known(AutoencoderConfig(), values))


def _unet(values: Mapping[str, Any]) -> UNetConfig:
    return UNetConfig(**_known(UNetConfig(), values))


def _known(default: AutoencoderConfig | UNetConfig | ImageEncoderConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that a config.json gives; it has many more, which follow from these."""
    known = {name: values[name] for name in vars(default) if values.get(name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}


def _fusion(vae: tensors.Shapes, unet: tensors.Shapes, latent: int) -> Fusion:
    if not any(key.startswith("decoder_2.") for key in vae):
        return "none"
    if unet.get("conv_out.weight", (2 * latent,))[:1] == (latent,):
        return "offset"
    reads = vae["decoder_2.conv_in.weight"]
    return "separate" if len(reads) > 1 and reads[1] == latent else "unify"


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key table of a network."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def expected_tables(config: MotionCrafterConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Every key and shape that each published subfolder must hold, without allocating anything."""
    model = build(config, meta=True)
    return {
        VAE_FOLDER: shapes(model.vae),
        UNET_FOLDERS[config.paradigm]: shapes(model.unet),
        "vae": shapes(model.rgb_vae),
        "image_encoder": shapes(model.image_encoder),
    }


def modern(key: str) -> str:
    """Today's name of a key from an old diffusers file."""
    for old, new in LEGACY.items():
        key = key.replace(f"attentions.0{old}", f"attentions.0{new}")
    return key


def _fill(
    module: nn.Module, source: Resolved, subfolder: str, dtype: torch.dtype | None, ignored: tuple[str, ...] = ()
) -> None:
    state = tensors.read(
        source.files(subfolder),
        shapes(module),
        ignored=(*ignored, *IGNORED.get(subfolder, ())),
        rename=modern,
        dtype=dtype,
    )
    _assign(module, state)


def _assign(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put checked tensors into a network on the meta device, making what is not in files (position ids)."""
    module.load_state_dict(state, strict=True, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:  # the only buffer of these networks: CLIP's position numbers, never stored
            owner = module.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], torch.arange(buffer.shape[-1]).expand(buffer.shape))


def load_file(path: Path, *, dtype: torch.dtype = torch.float32) -> Loaded:
    """A checkpoint written by `train.export`: one safetensors file, and a JSON of the same name beside it.

    Raises:
        FileNotFoundError: one of the two is not there.
        WeightsError: damaged, not the file the JSON describes, or keys that do not fit its configuration.
    """
    card_path = path.with_suffix(".json")
    for needed in (path, card_path):
        if not needed.is_file():
            raise FileNotFoundError(f"There is no {needed}; a checkpoint is a .safetensors file and its .json.")
    card = json.loads(card_path.read_text())
    if card.get("sha256") != (found := sha256(path)):
        raise tensors.WeightsError(f"{path} is not the file that {card_path.name} describes; get both again.")
    model = build(MotionCrafterConfig.from_dict(card["config"]), meta=True, encoders=False)
    _assign(model, tensors.read([path], shapes(model), dtype=dtype))
    return Loaded(model=model.eval(), sha256=found, card=card)
