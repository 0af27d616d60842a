"""What a long run has finished so far, kept beside its output so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.io.atomic import atomic_file, remove
from worldline.io.jsonable import jsonable

_VERSION = 1
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class PartialRun:
    """Named groups of tensors in the folder `OUT.partial`, good only for one choice of settings.

    A folder left by a run with other settings (or another format version) is discarded. Nothing is created before the
    first `put`. Each group appears whole or not at all, and a damaged one counts as absent.

    Attributes:
        folder: OUT.partial.
        resumed: keys that an earlier run had finished.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Look for what an earlier run of `path` with the same JSON-able settings left.

        Raises:
            FileExistsError: OUT.partial exists and is something else.
        """
        path = Path(path).expanduser().absolute()
        self.folder = path.with_name(f"{path.name}.partial")
        self._settings = {"version": _VERSION, "settings": jsonable(settings)}
        canonical = json.dumps(self._settings, sort_keys=True)
        self._hash = hashlib.sha256(canonical.encode()).hexdigest()
        if self.folder.exists():
            if self._stored_hash() != self._hash:
                self.discard()
        self.resumed = tuple(self.keys())

    def _stored_hash(self) -> str | None:
        """Hash of the settings of the folder; None when it is damaged."""
        file = self.folder / "settings.json"
        if not self.folder.is_dir() or (not file.is_file() and any(self.folder.iterdir())):
            raise FileExistsError(f"{self.folder} is in the way and is no unfinished run; move it somewhere else.")
        try:
            return json.loads(file.read_text())["hash"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _file(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"The key {key!r} must consist of letters, digits and _ . -")
        return self.folder / f"{key}.safetensors"

    def keys(self) -> list[str]:
        """Keys of the groups stored so far, sorted."""
        return sorted(file.stem for file in self.folder.glob("*.safetensors"))

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under `key`; None when there are none or they are damaged."""
        from safetensors import SafetensorError, safe_open

        file = self._file(key)
        if not file.is_file():
            return None
        try:
            with safe_open(str(file), framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}
                expected = (stored.metadata() or {}).get("crc32")
        except (SafetensorError, OSError):
            return None
        return tensors if expected == _checksum(tensors) else None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors under `key`, replacing what was there.

        Raises:
            OSError: the disk is full or read-only, as one sentence; what was stored before stays.
        """
        from safetensors.torch import save

        file = self._file(key)
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        if not (self.folder / "settings.json").is_file():
            with atomic_file(self.folder / "settings.json") as draft:
                draft.write_text(json.dumps({"hash": self._hash, **self._settings}, indent=1))
        with atomic_file(file) as draft:
            draft.write_bytes(save(plain, metadata={"crc32": _checksum(plain)}))

    def discard(self) -> None:
        """Delete the folder: the run is finished, or starts anew."""
        remove(self.folder)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        raw = tensors[name].flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy()
        total = zlib.crc32(raw.tobytes(), zlib.crc32(name.encode(), total))
    return str(total)
