"""Checkpoints that survive a kill: written beside and renamed, safetensors and JSON only, in files of limited size."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldline.training.sharding import wait, whole

ENGINE = "engine"
"""Folder in a checkpoint for the state of an engine that keeps it itself."""

WRITING = ".writing"
"""Name of a checkpoint that is not complete yet."""

FILE_BYTES = 15 * 2**20
"""Tensors are packed into files of at most this size (a larger single tensor has a file of its own)."""


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    info: dict,
    *,
    write: bool = True,
    engine: Callable[[Path], None] | None = None,
) -> Path:
    """Write one checkpoint as `folder/step-<step>` and then drop the older ones.

    The directory appears whole or not at all: it is written under another name, synced and renamed. Tensors that
    processes share out among themselves are put together one by one, so all of them must call; one of them writes.

    Args:
        folder: of the stage's checkpoints.
        step: optimiser steps done.
        tensors: what is kept, by name, in an order that is the same in every process.
        info: JSON-able facts.
        write: whether this process is the one that writes.
        engine: writes further files into a folder; called by every process (an engine that keeps its own state).
    """
    target, partial = folder / f"step-{step:09d}", folder / WRITING
    if write:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    wait()
    if engine is not None:
        engine(partial / ENGINE)
    for number, part in enumerate(_packed(tensors)):
        if write:
            save_file(part, partial / f"state-{number:02d}.safetensors")
    wait()
    if write:
        _publish(folder, partial, target, {"step": step, **info})
    wait()
    return target


def _publish(folder: Path, partial: Path, target: Path, info: dict) -> None:
    (partial / "info.json").write_text(json.dumps(info, indent=1))
    for path in partial.rglob("*"):
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _sync(folder)
    for old in _complete(folder):
        if old != target:
            shutil.rmtree(old)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder, or None."""
    found = _complete(folder)
    return found[-1] if found else None


def load(checkpoint: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and information of one checkpoint.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    return dict(stream(checkpoint)), information(checkpoint)


def information(checkpoint: Path) -> dict:
    """What was said when a checkpoint was written, and its step.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    if not (checkpoint / "info.json").is_file():
        raise FileNotFoundError(f"{checkpoint} is not a checkpoint (it has no info.json).")
    return json.loads((checkpoint / "info.json").read_text())


def stream(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every tensor, a file at a time, in the order in which they were written."""
    for path in sorted(checkpoint.glob("state-*.safetensors"), key=lambda path: (len(path.name), path.name)):
        yield from load_file(path).items()


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


def _packed(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors, whole and in order, in groups of at most FILE_BYTES."""
    group: dict[str, Tensor] = {}
    room = FILE_BYTES
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if group and size > room:
            yield group
            group, room = {}, FILE_BYTES
        group[name] = whole(tensor.detach()).cpu().contiguous().clone()
        room -= size
    yield group


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
