"""Readers of container files: OpenEXR, HDF5, npy and npz, JSON. Nothing is ever unpickled."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.data.adapters.encodings import require


def _extra(module: str) -> Any:
    """An optional library of the extra `data`.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"This data set needs {module}: pip install 'worldline[data]'.") from error


def require_libraries(*modules: str) -> None:
    """Fail before the first file, not once per file, if an optional library is missing.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    for module in modules:
        _extra(module)


def read_exr(path: Path, channel: str | None = None) -> Tensor:
    """One channel of an OpenEXR image as float32 [H, W]; the first one (in the order of the names) if none is named.

    Raises:
        ValueError: the file has no such channel.
    """
    library = _extra("OpenEXR")
    with library.File(str(require(path)), separate_channels=True) as file:
        channels = file.channels()
        name = sorted(channels)[0] if channel is None and channels else channel
        if name not in channels:
            raise ValueError(f"{path} has the channels {', '.join(sorted(channels))}, and no {channel}.")
        return torch.from_numpy(np.array(channels[name].pixels, dtype=np.float32))


def read_hdf5(path: Path, *keys: str) -> tuple[np.ndarray, ...]:
    """Datasets of an HDF5 file.

    Raises:
        ValueError: the file has no dataset of that name.
    """
    library = _extra("h5py")
    with library.File(require(path), "r") as file:
        for key in keys:
            if key not in file:
                raise ValueError(f"{path} has no dataset {key!r}.")
        return tuple(np.asarray(file[key]) for key in keys)


def read_npy(path: Path) -> Tensor:
    """An array of an .npy file."""
    return torch.from_numpy(np.load(require(path), allow_pickle=False))


def read_npz(path: Path, *keys: str) -> tuple[np.ndarray, ...]:
    """Arrays of an .npz file; without keys, its only array.

    Raises:
        ValueError: the file lacks one, or has several and none is named.
    """
    with np.load(require(path), allow_pickle=False) as file:
        if not keys:
            if len(file.files) != 1:
                raise ValueError(f"{path} holds the arrays {', '.join(file.files)}, not a single one.")
            keys = tuple(file.files)
        missing = [key for key in keys if key not in file.files]
        if missing:
            raise ValueError(f"{path} has no array {', '.join(missing)}, only {', '.join(file.files)}.")
        return tuple(file[key] for key in keys)


def read_json(path: Path) -> Any:
    """A JSON file, gzipped or not."""
    data = require(path).read_bytes()
    return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
