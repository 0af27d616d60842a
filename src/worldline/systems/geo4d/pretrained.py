"""Weights of Geo4D: folders made by `convert`, and our own single-file checkpoints.

FOLDER/config.json      sizes, where it was converted from
FOLDER/unet/            model-00001-of-00002.safetensors ..., bfloat16
FOLDER/vae/ point_vae/  model.safetensors, float32: an autoencoder in half precision costs accuracy, not memory
FOLDER/context/         model.safetensors: the constant context
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldline.io import tensors
from worldline.io.ledger import sha256
from worldline.systems.geo4d.config import Geo4DConfig
from worldline.systems.geo4d.networks import Geo4D, build
from worldline.training import export as exporting

PARTS = ("unet", "vae", "point_vae")
FORMAT = "worldline-geo4d-1"

WHERE = (
    "The published Geo4D weights must be downloaded by hand from the address on its project page (model.ckpt and "
    "vae.ckpt) and converted once: `worldline models convert geo4d model.ckpt vae.ckpt -o DIR`, then --weights DIR."
)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to run.

    Attributes:
        model: the networks, in evaluation mode.
        sha256: hash of everything it was made of.
        card: what its maker says about it (metrics, unreliable outputs).
    """

    model: Geo4D
    sha256: str
    card: dict[str, Any] = field(default_factory=dict)


def load_folder(source: str | None, *, dtype: torch.dtype | None = torch.bfloat16) -> Loaded:
    """A converted checkpoint; the U-Net in `dtype` (None: as stored).

    Raises:
        WeightsError: no folder, no such folder, damaged, or keys and shapes that do not fit its configuration.
    """
    if source is None:
        raise tensors.WeightsError(WHERE)
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise tensors.WeightsError(f"{folder} has no config.json, so it is no converted Geo4D checkpoint. {WHERE}")
    about = json.loads((folder / "config.json").read_text())
    if about.get("format") != FORMAT:
        raise tensors.WeightsError(f"{folder}/config.json is not of the format {FORMAT}; convert the checkpoint again.")
    model = build(Geo4DConfig.from_dict(about["networks"]), meta=True, encoders=False)
    hashes = []
    for name in (*PARTS, "context"):
        files = tensors.model_files(folder / name)
        hashes += [f"{name}/{path.name} {sha256(path)}" for path in files]
        if name == "context":
            expected = {"context": tuple(model.context.shape)}
            model.context = nn.Parameter(tensors.read(files, expected, dtype=torch.float32)["context"])
        else:
            part = getattr(model, name)
            state = tensors.read(files, shapes(part), dtype=dtype if name == "unet" else torch.float32)
            part.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False)
    digest = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    return Loaded(model=model.eval(), sha256=digest)


def load_file(path: Path, *, dtype: torch.dtype = torch.float32) -> Loaded:
    """A checkpoint written by `export`: one safetensors file, and a JSON of the same name beside it.

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
    model = build(Geo4DConfig.from_dict(card["config"]), meta=True, encoders=False)
    model.load_state_dict(tensors.read([path], shapes(model), dtype=dtype), strict=True, assign=True)
    model.requires_grad_(False)
    return Loaded(model=model.eval(), sha256=found, card=card)


def export(model: Geo4D, path: Path, card: Mapping[str, Any]) -> Path:
    """Write the weights inference needs as fp16 safetensors, and beside them a JSON (see `training.export`)."""
    wanted = shapes(build(model.config, meta=True, encoders=False))
    weights = {name: value for name, value in model.state_dict().items() if name in wanted}
    return exporting.export(weights, path, model.config.to_dict(), card)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key table of a network."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}
