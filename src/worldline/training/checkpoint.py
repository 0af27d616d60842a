"""Checkpoints that survive a kill: written beside and renamed, safetensors and JSON only, in files of limited size."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE_BYTES = 15 * 2**20
"""Tensors are packed into files of at most this size (a larger single tensor has a file of its own)."""


def save(folder: Path, step: int, tensors: dict[str, Tensor], info: dict) -> Path:
    """Write one checkpoint as `folder/step-<step>` and then drop the older ones.

    The directory appears whole or not at all: it is written under another name, synced and renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:09d}"
    partial = folder / f".writing-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for number, part in enumerate(_packed(tensors)):
        save_file(part, partial / f"state-{number:02d}.safetensors")
    (partial / "info.json").write_text(json.dumps({"step": step, **info}, indent=1))
    for path in partial.iterdir():
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _sync(folder)
    for old in _complete(folder):
        if old != target:
            shutil.rmtree(old)
    return target


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder, or None."""
    found = _complete(folder)
    return found[-1] if found else None


def load(checkpoint: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and information of one checkpoint.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    if not (checkpoint / "info.json").is_file():
        raise FileNotFoundError(f"{checkpoint} is not a checkpoint (it has no info.json).")
    tensors: dict[str, Tensor] = {}
    for path in sorted(checkpoint.glob("state-*.safetensors")):
        tensors.update(load_file(path))
    return tensors, json.loads((checkpoint / "info.json").read_text())


def check_run(checkpoint: Path, config: dict) -> None:
    """Refuse a checkpoint of a run with other settings.

    Raises:
        ValueError: naming what differs.
    """
    found = json.loads((checkpoint / "info.json").read_text())["config"]
    if found != config:
        changed = sorted(key for key in {**found, **config} if found.get(key) != config.get(key))
        raise ValueError(
            f"{checkpoint} belongs to a run with other settings ({', '.join(changed)}); "
            "choose another output folder, or start again without --resume."
        )


def _complete(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _packed(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Split tensors, in order, into groups of at most FILE_BYTES."""
    groups: list[dict[str, Tensor]] = [{}]
    room = FILE_BYTES
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if groups[-1] and size > room:
            groups.append({})
            room = FILE_BYTES
        groups[-1][name] = tensor.detach().cpu().contiguous().clone()
        room -= size
    return groups


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimiser's state of each parameter as `<parameter name>/<state name>`; names in the optimiser's order."""
    state = optimizer.state_dict()["state"]
    return {f"{names[i]}/{key}": value for i, values in state.items() for key, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned; settings such as the rate stay the optimiser's own."""
    whole = optimizer.state_dict()
    whole["state"] = {}
    index = {name: i for i, name in enumerate(names)}
    for path, value in tensors.items():
        name, key = path.rsplit("/", 1)
        whole["state"].setdefault(index[name], {})[key] = value
    optimizer.load_state_dict(whole)
