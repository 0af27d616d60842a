"""What this machine remembers: licences the user accepted, and hashes of big files."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldline.io.atomic import atomic_file

REMEMBER_ABOVE_BYTES = 64 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What the owner of the weights asks for.

    Attributes:
        name: short name, the key under which acceptance is recorded.
        text: what the user must know, shown once.
        url: where the full text is.
        must_accept: whether the weights may only be used after an explicit yes.
    """

    name: str
    text: str
    url: str = ""
    must_accept: bool = True


def cache_folder() -> Path:
    """Where acceptances and known hashes are recorded: WORLDLINE_CACHE, or ~/.cache/worldline."""
    return Path(os.environ.get("WORLDLINE_CACHE", Path.home() / ".cache" / "worldline"))


def sha256(path: Path) -> str:
    """Hash of a file's content; that of a big one is remembered by size and time, so that gigabytes are read once."""
    path = path.resolve()
    if path.stat().st_size < REMEMBER_ABOVE_BYTES:
        return _hash(path)
    stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    ledger_path = cache_folder() / "hashes.json"
    ledger = _read_json(ledger_path)
    known = ledger.get(str(path))
    if known is not None and known[:2] == stamp:
        return known[2]
    digest = _hash(path)
    with suppress(OSError):  # a home that cannot be written costs time, not the run
        _write_json(ledger_path, {**_read_json(ledger_path), str(path): [*stamp, digest]})
    return digest


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def accepted(licence: Licence) -> bool:
    """Whether this licence was accepted on this machine, in its present wording."""
    entry = _read_json(cache_folder() / "licences.json").get(licence.name)
    return entry is not None and entry["text_sha256"] == hashlib.sha256(licence.text.encode()).hexdigest()


def accept(licence: Licence) -> None:
    """Record that the user accepts a licence."""
    path, digest = cache_folder() / "licences.json", hashlib.sha256(licence.text.encode()).hexdigest()
    entry = {"accepted": time.strftime("%Y-%m-%d"), "text_sha256": digest, "text": licence.text}
    _write_json(path, {**_read_json(path), licence.name: entry})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_file(path) as draft:
        draft.write_text(json.dumps(values, indent=1))
