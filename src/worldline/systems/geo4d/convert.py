"""Published checkpoints -> folders of safetensors (spec 2): checked key by key, nothing in them is ever executed.

model.ckpt    Lightning: under "state_dict"; DeepSpeed: under "module", every key with 16 characters before it
vae.ckpt      Lightning: the keys that begin with "model."
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.diffusion.ddim import zero_snr_schedule
from worldline.io import atomic, tensors
from worldline.io.tensors import WeightsError
from worldline.scene import Progress, no_progress
from worldline.systems.geo4d import published
from worldline.systems.geo4d.config import ClipConfig, Geo4DConfig, ResamplerConfig
from worldline.systems.geo4d.context import TextTower, VisionTower, constant_context
from worldline.systems.geo4d.pretrained import FORMAT, shapes
from worldline.systems.geo4d.resampler import Resampler
from worldline.systems.geo4d.unet import Geo4DUNet
from worldline.systems.geo4d.vae import Geo4DVae

SHARD_BYTES = 2 * 1024**3
FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "deepspeed.", "argparse.")
"""Training frameworks whose objects lie in checkpoints beside the tensors; they are read as empty shells."""

SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "scale_arr",
)
"""Tables we compute ourselves; alphas_cumprod and scale_arr must agree with ours if they are there."""

OPTIONAL = (published.TEXT_PREFIX + "attn_mask", *SCHEDULE_BUFFERS)

State = dict[str, Tensor]


def convert(
    model_file: Path,
    vae_file: Path,
    out: Path,
    *,
    config: Geo4DConfig | None = None,
    clip: ClipConfig | None = None,
    resampler: ResamplerConfig | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Write a folder that `pretrained.load_folder` reads; it appears whole or not at all.

    Args:
        model_file: the published model.ckpt.
        vae_file: the published vae.ckpt.
        out: the folder to make; must not exist.
        config, clip, resampler: sizes of the networks; None is the published full size.
        progress: told about each part.

    Raises:
        FileExistsError: there is something at `out`.
        WeightsError: a file is missing, cut off, unsafe, or holds other tensors than expected.
    """
    config, clip = config or Geo4DConfig(), clip or ClipConfig()
    if out.exists():
        raise FileExistsError(f"{out} already exists; choose another folder or remove it.")
    atomic.check_parent(out)
    # 1. every key and shape, before anything is written
    state, vae_state = read_model(model_file), read_vae(vae_file)
    expected, expected_vae = expected_tables(config, clip, resampler)
    tensors.check(str(model_file), expected, table(state), OPTIONAL)
    tensors.check(str(vae_file), expected_vae, table(vae_state))
    _check_schedule(state, model_file)
    # 2. the networks, our names, and the context computed once
    draft = atomic.beside(out)
    try:
        for done, (name, part) in enumerate(_parts(state, vae_state, config).items()):
            progress("convert", done, 4)
            _write(draft / name, part, torch.bfloat16 if name == "unet" else torch.float32)
        progress("convert", 3, 4)
        context = context_of(state, clip, resampler or ResamplerConfig())
        _write(draft / "context", {"context": context}, torch.float32)
        about = {"format": FORMAT, "networks": config.to_dict(), "from": [model_file.name, vae_file.name]}
        (draft / "config.json").write_text(json.dumps(about, indent=1) + "\n")
        atomic.put_in_place(draft, out)
    finally:
        atomic.remove(draft)
    progress("convert", 4, 4)
    return out


def read_model(path: Path) -> State:
    """The tensors of model.ckpt, by the names of the Lightning format."""
    container = _load(path)
    if "state_dict" in container:
        state = container["state_dict"]
    elif "module" in container:
        prefix = published.DEEPSPEED_PREFIX
        state = {key.removeprefix(prefix): value for key, value in _mapping(container["module"], path).items()}
    else:
        raise WeightsError(f"{path} has neither 'state_dict' nor 'module'; give the published model.ckpt.")
    return {key.replace("framestride_embed", "fps_embedding"): v for key, v in _mapping(state, path).items()}


def read_vae(path: Path) -> State:
    """The tensors of vae.ckpt that belong to the autoencoder; losses beside them are left."""
    container = _load(path)
    if "state_dict" not in container:
        raise WeightsError(f"{path} has no 'state_dict'; give the published vae.ckpt.")
    state = _mapping(container["state_dict"], path)
    return {key: value for key, value in state.items() if key.startswith(published.POINT_VAE_PREFIX)}


def expected_tables(
    config: Geo4DConfig, clip: ClipConfig, resampler: ResamplerConfig | None = None
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Every key and shape of (model.ckpt, vae.ckpt) for networks of these sizes, without allocating anything."""
    with torch.device("meta"):
        unet, text, vision = Geo4DUNet(config.unet), TextTower(clip), VisionTower(clip)
        queries, vae = Resampler(resampler), Geo4DVae(replace(config.vae, uncertainty=True))
    autoencoder = published.vae_table(shapes(vae), config.vae)
    width = clip.text.width
    leftover = {
        "positional_embedding": (77, width),
        "text_projection": (width, clip.embedding),
        "logit_scale": (),
        "token_embedding.weight": (clip.vocabulary, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    model = {published.UNET_PREFIX + published.unet_key_of(key): shape for key, shape in shapes(unet).items()}
    model |= {published.VAE_PREFIX + key: shape for key, shape in autoencoder.items()}
    model |= {published.TEXT_PREFIX + key: shape for key, shape in shapes(text).items()}
    model |= {published.IMAGE_PREFIX + key: shape for key, shape in shapes(vision).items()}
    model |= {published.IMAGE_PREFIX.removesuffix("visual.") + key: shape for key, shape in leftover.items()}
    model |= {published.RESAMPLER_PREFIX + key: shape for key, shape in shapes(queries).items()}
    return model, {published.POINT_VAE_PREFIX + key: shape for key, shape in autoencoder.items()}


@torch.no_grad()
def context_of(state: State, clip: ClipConfig, resampler: ResamplerConfig) -> Tensor:
    """[N, D] the constant context of a checkpoint, in float32."""
    with torch.device("meta"):
        text, vision, queries = TextTower(clip), VisionTower(clip), Resampler(resampler)
    for module, prefix in (
        (text, published.TEXT_PREFIX),
        (vision, published.IMAGE_PREFIX),
        (queries, published.RESAMPLER_PREFIX),
    ):
        found = {key: state[prefix + key].float() for key in module.state_dict()}
        module.load_state_dict(found, strict=True, assign=True)
    return constant_context(text.eval(), vision.eval(), queries.eval(), clip.image_size)


def _parts(state: State, vae_state: State, config: Geo4DConfig) -> dict[str, State]:
    """Tensors of each network by our names: what inference needs."""
    levels = len(config.vae.channels)

    def autoencoder(source: State, prefix: str, keep: tuple[str, ...]) -> State:
        part = {}
        for key, value in source.items():
            name = published.vae_key(key.removeprefix(prefix), levels) if key.startswith(prefix) else None
            if name is not None and name.startswith(keep):
                part[name] = published.vae_value(name, value)
        return part

    decoder = ("decoder.", "post_quant_conv.")
    prefix = published.UNET_PREFIX
    return {
        "unet": {published.unet_key(k.removeprefix(prefix)): v for k, v in state.items() if k.startswith(prefix)},
        "vae": autoencoder(state, published.VAE_PREFIX, ("encoder.", "quant_conv.", *decoder)),
        "point_vae": autoencoder(vae_state, published.POINT_VAE_PREFIX, ("uncertainty.", *decoder)),
    }


def _write(folder: Path, state: State, dtype: torch.dtype) -> None:
    """A model as shards of limited size, converted one shard at a time, with an index if there are several."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for key, value in state.items():
        size = value.numel() * dtype.itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(key)
        room -= size
    index: dict[str, str] = {}
    for number, keys in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({key: state[key].to(dtype).contiguous().clone() for key in keys}, folder / name)
        index |= dict.fromkeys(keys, name)
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}, indent=1))


def _check_schedule(state: State, path: Path) -> None:
    ours = zero_snr_schedule()
    for key, table_ in (("alphas_cumprod", ours.alphas_cumprod), ("scale_arr", ours.scale)):
        found = state.get(key)
        if found is not None and (found.shape != table_.shape or not torch.allclose(found.float(), table_, atol=1e-5)):
            raise WeightsError(f"{path} was trained with another noise schedule ({key} differs); it is not Geo4D's.")


def table(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Key table of a state dict."""
    return {key: tuple(value.shape) for key, value in state.items()}


def _mapping(found: Any, path: Path) -> State:
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path} holds something else than named tensors; give the published file.")
    return dict(found)


def _load(path: Path) -> Mapping[str, Any]:
    """A checkpoint's container; only tensors and plain data are built, shells stand for what frameworks put in."""
    if not path.is_file():
        raise WeightsError(f"There is no file {path}; give the checkpoints as downloaded.")
    if not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is cut off, or no PyTorch checkpoint at all; download it again.")
    try:
        strange = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        unsafe = sorted(name for name in strange if not name.startswith(FRAMEWORKS))
        if unsafe:
            raise WeightsError(
                f"{path} asks for {unsafe[0]}, which could run code when read; it is refused and nothing was run: "
                "get the checkpoint from its publisher."
            )
        with _shells(strange):
            container = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, OSError) as error:
        reason = str(error).strip().split("\n")[0][:100]
        raise WeightsError(f"{path} cannot be read as a checkpoint ({reason}); download it again.") from error
    if not isinstance(container, Mapping):
        raise WeightsError(
            f"{path} holds a {type(container).__name__} instead of named parts; give the published file."
        )
    return container


@contextmanager
def _shells(names: list[str]) -> Iterator[None]:
    """Let classes of training frameworks be read as dictionaries that do nothing."""
    with torch.serialization.safe_globals([(_shell(), name) for name in names]):
        yield


def _shell() -> type:
    class Shell:
        """Becomes an ordered dictionary whatever it is asked to be: takes items and attributes, runs nothing."""

        def __new__(cls, *args: Any, **options: Any) -> Any:
            return OrderedDict()

    return Shell
