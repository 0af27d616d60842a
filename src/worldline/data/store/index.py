"""What a clip store holds, without opening a clip.

STORE/index.json            all clips: name, length, size, intrinsics, flags, where they are (checksummed); written last
STORE/settings.json         what the store is made from, so that only the same command resumes it
STORE/shards/NAME.bin       clips one after another: chunks, then the clip's own table of them
STORE/shards/NAME.json      the part of the index that is about this shard; a shard without it does not count

Shards exist so that a store is some hundred files and not a hundred thousand: what a clip needs is one range of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from worldline.io.layout import seal, unseal
from worldline.io.storage import Storage

FORMAT = "worldline clips"
VERSION = 1
INDEX = "index.json"
SETTINGS = "settings.json"
SHARDS = "shards"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One clip of a store.

    Attributes:
        name: unique in the store.
        dataset, split: where it is from; empty when not known.
        frames: how many.
        size: (H, W) in pixels.
        intrinsics: median (fx, fy, cx, cy) in pixels, None without cameras.
        scale: "metric" or "relative".
        flags: see `record.flags_of`.
        caption: one sentence, or empty.
        arrays: names of what is stored.
        bytes: in the shard.
        shard: its name.
        table: (offset, length) of the clip's table in the shard.
    """

    name: str
    dataset: str
    split: str
    frames: int
    size: tuple[int, int]
    intrinsics: tuple[float, float, float, float] | None
    scale: str
    flags: frozenset[str]
    caption: str
    arrays: tuple[str, ...]
    bytes: int
    shard: str
    table: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "flags": sorted(self.flags)}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> Entry:
        """The inverse of `to_json`."""
        k = entry["intrinsics"]
        plain = {name: tuple(entry[name]) for name in ("size", "arrays", "table")}
        return Entry(**{**entry, **plain, "intrinsics": None if k is None else tuple(k)}
                     | {"flags": frozenset(entry["flags"])})  # fmt: skip


def shard_file(shard: str) -> str:
    """The file with the chunks of a shard."""
    return f"{SHARDS}/{shard}.bin"


def write_shard_index(storage: Storage, shard: str, entries: Iterable[Entry]) -> None:
    """Make a shard count."""
    content = {"format": FORMAT, "version": VERSION, "clips": [entry.to_json() for entry in entries]}
    storage.write(f"{SHARDS}/{shard}.json", seal(content).encode())


def finished_shards(storage: Storage) -> dict[str, list[Entry]]:
    """Shards that count, by name; a shard index that is damaged does not count, and its clips are made again."""
    found: dict[str, list[Entry]] = {}
    for name in storage.names(SHARDS, ".json"):
        content = unseal(storage.read(name))
        if content is not None and content.get("format") == FORMAT:
            found[name.rsplit("/", 1)[-1].removesuffix(".json")] = [Entry.from_json(e) for e in content["clips"]]
    return found


def write_index(storage: Storage, entries: Iterable[Entry], settings: Mapping[str, Any]) -> None:
    """Finish a store.

    Raises:
        ValueError: two clips have one name.
    """
    ordered = sorted(entries, key=lambda entry: entry.name)
    names = [entry.name for entry in ordered]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
    if twice:
        raise ValueError(f"{storage} has {len(twice)} clips twice, {twice[0]} among them; convert it anew.")
    content = {"format": FORMAT, "version": VERSION, "settings": dict(settings)}
    storage.write(INDEX, seal({**content, "clips": [entry.to_json() for entry in ordered]}).encode())


def read_index(storage: Storage, partial: bool = False) -> tuple[list[Entry], dict[str, Any]]:
    """The clips of a store and its settings.

    Args:
        storage: the store.
        partial: also read a store that is still being made, as far as it is.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it is unfinished, damaged, or of a newer version.
    """
    try:
        text = storage.read(INDEX)
    except FileNotFoundError:
        unfinished = storage.exists(SETTINGS) or bool(storage.names(SHARDS, ".json"))
        if not unfinished:
            raise FileNotFoundError(f"There is no clip store at {storage} (no {INDEX} in it).") from None
        if not partial:
            raise ValueError(f"{storage} is an unfinished clip store; run the command that makes it again.") from None
        entries = [entry for part in finished_shards(storage).values() for entry in part]
        return sorted(entries, key=lambda entry: entry.name), {}
    content = unseal(text)
    if content is None or content.get("format") != FORMAT:
        raise ValueError(f"{storage}/{INDEX} is damaged, or no index of clips.")
    if content["version"] > VERSION:
        raise ValueError(f"{storage} was written by a newer Worldline (format {content['version']}).")
    return [Entry.from_json(entry) for entry in content["clips"]], content["settings"]
