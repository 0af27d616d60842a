"""Writing clips into shards: a clip counts once its shard is whole; a killed run loses at most the shard it was at."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from worldline.data.clips import Clip
from worldline.data.store import index
from worldline.data.store.index import Entry
from worldline.data.store.record import WHOLE, arrays_of, flags_of, median_intrinsics
from worldline.io import chunks
from worldline.io.jsonable import jsonable
from worldline.io.layout import seal, unseal
from worldline.io.storage import Storage

SHARD_BYTES = 256 << 20
"""A shard is closed when it is this long; a clip is never split."""


def begin(
    place: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False, reopen: bool = False
) -> tuple[Storage, set[str]]:
    """Start a store or find one that the same settings began.

    Args:
        place: folder or URL.
        settings: what it is made from, JSON-able; only the same settings resume it.
        overwrite: delete what another command left there.
        reopen: go on with a finished store of the same settings; until it is finished again it counts as unfinished.

    Returns:
        The place, and the names of the clips that are finished.

    Raises:
        FileExistsError: there is a finished store, one of other settings, or something else.
        OSError: it cannot be written there.
    """
    storage = Storage(place)
    wanted = {"format": index.FORMAT, "version": index.VERSION, "settings": jsonable(settings)}
    stored = _stored_settings(storage)
    if reopen and stored == wanted:
        storage.remove(index.INDEX)
    if storage.exists(index.INDEX) or (stored is not None and stored != wanted):
        if not overwrite:
            raise FileExistsError(f"{place} already holds a clip store"
                                  f"{'' if storage.exists(index.INDEX) else ' in the making, of other settings'}; "
                                  "choose another place, or replace it with --overwrite.")  # fmt: skip
        erase(storage)
    elif stored is None and storage.local is not None and storage.local.exists():
        if not storage.local.is_dir() or any(storage.local.iterdir()):
            raise FileExistsError(f"{place} exists and is no clip store; choose another place.")
    storage.write(index.SETTINGS, seal(wanted).encode())
    return storage, {entry.name for part in index.finished_shards(storage).values() for entry in part}


def _stored_settings(storage: Storage) -> dict[str, Any] | None:
    try:
        found = unseal(storage.read(index.SETTINGS))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return {"damaged": True} if found is None else found


def erase(storage: Storage) -> None:
    """Delete the files of a store, and no others; the index first, so that half of one is never taken for all."""
    storage.remove(index.INDEX)
    for suffix in (".json", ".bin"):
        for name in storage.names(index.SHARDS, suffix):
            storage.remove(name)
    storage.remove(index.SETTINGS)


def finish(storage: Storage, settings: Mapping[str, Any]) -> list[Entry]:
    """Write the index over all finished shards; shard files that no index speaks of are deleted.

    Raises:
        ValueError: two clips have one name.
    """
    parts = index.finished_shards(storage)
    entries = [entry for part in parts.values() for entry in part]
    index.write_index(storage, entries, jsonable(settings))
    for suffix in (".bin", ".json"):
        for name in storage.names(index.SHARDS, suffix):
            if name.rsplit("/", 1)[-1].removesuffix(suffix) not in parts:
                storage.remove(name)
    return sorted(entries, key=lambda entry: entry.name)


class ShardWriter:
    """Appends clips to a shard of its own; several may write into one store at the same time.

    `with ShardWriter(storage) as writer:` and in it `writer.add(...)`. A block that fails keeps the shards it closed.
    """

    def __init__(self, storage: Storage, shard_bytes: int = SHARD_BYTES) -> None:
        self._storage, self._limit = storage, shard_bytes
        self._file: Any = None
        self._draft: Path | None = None
        self._entries: list[Entry] = []

    def __enter__(self) -> ShardWriter:
        return self

    def add(self, name: str, clip: Clip) -> Entry:
        """Append a clip; dataset, split and caption are those of `provenance.settings`.

        Raises:
            ValueError: the clip is empty or not finite where it is valid; nothing of it stays.
            OSError: the disk is full.
        """
        if self._file is None:
            self._draft = self._storage.draft(index.SHARDS)
            self._file = self._draft.open("wb")
        start = self._file.tell()
        try:
            arrays = {label: self._append(label, values) for label, values in arrays_of(clip)}
        except BaseException:
            self._file.seek(start)
            self._file.truncate()
            raise
        entry = self._entry(name, clip, arrays, start)
        self._entries.append(entry)
        if self._file.tell() >= self._limit:
            self.flush()
        return entry

    def _append(self, label: str, values: np.ndarray) -> dict[str, Any]:
        """Write the chunks of an array; returns its row of the table."""
        frames = [values] if label in WHOLE else list(values)
        packed = [chunks.encode(frame) for frame in frames]
        offset = self._file.tell()
        for chunk in packed:
            self._file.write(chunk)
        shape = values.shape if label in WHOLE else values.shape[1:]
        lengths = [len(chunk) for chunk in packed]
        return {"dtype": str(values.dtype), "shape": list(shape), "offset": offset, "lengths": lengths}

    def _entry(self, name: str, clip: Clip, arrays: dict[str, Any], start: int) -> Entry:
        scene, settings = clip.scene, clip.scene.provenance.settings
        table = {
            "name": name,
            "frames": len(scene),
            "size": list(scene.size),
            "scale": scene.scale,
            "provenance": jsonable(scene.provenance),
            "arrays": arrays,
        }
        text = json.dumps(json.loads(seal(table)), separators=(",", ":")).encode()
        offset = self._file.tell()
        self._file.write(text)
        return Entry(
            name=name,
            dataset=str(settings.get("dataset", "")),
            split=str(settings.get("split", "")),
            frames=len(scene),
            size=scene.size,
            intrinsics=median_intrinsics(scene.cameras),
            scale=scene.scale,
            flags=flags_of(clip),
            caption=str(settings.get("caption", "")),
            arrays=tuple(arrays),
            bytes=self._file.tell() - start,
            shard="",
            table=(offset, len(text)),
        )

    def flush(self) -> None:
        """Close the shard, so that its clips count."""
        if self._file is None or self._draft is None:
            return
        self._file.close()
        shard = secrets.token_hex(8)
        if self._entries:
            self._storage.adopt(self._draft, index.shard_file(shard))
            index.write_shard_index(self._storage, shard, [replace(entry, shard=shard) for entry in self._entries])
        else:
            self._draft.unlink()
        self._file, self._draft, self._entries = None, None, []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the last shard; after an error, too: what is finished is finished."""
        try:
            if kind is None or issubclass(kind, (Exception, KeyboardInterrupt)):
                self.flush()
        finally:
            if self._file is not None:
                self._file.close()
            if self._draft is not None:
                self._draft.unlink(missing_ok=True)
