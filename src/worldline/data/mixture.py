"""Several clip stores in given proportions: which clips a training run sees, and how often.

A mixture file is JSON:

    {"format": "worldline mixture", "version": 1,
     "sources": [{"store": "s3://bucket/vkitti2", "ratio": 2.0, "split": "train", "needs": ["flow"], "match": ""}, ...]}

The ratio is the share of the samples, not a weight per clip: a store of ten clips with ratio 1 is drawn as often as one
of a million with ratio 1. Relative paths are relative to the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldline.data.store import ClipStore, Entry
from worldline.io.atomic import atomic_file
from worldline.io.storage import is_url

FORMAT = "worldline mixture"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """One store of a mixture.

    Attributes:
        store: folder or URL.
        ratio: its share of the samples, relative to the other sources'.
        split: only clips of this split; all by default.
        needs: only clips with all of these flags ("flow", "metric", "static", "points", "cameras", ...).
        match: only clips with this in their name.
    """

    store: str
    ratio: float = 1.0
    split: str = ""
    needs: tuple[str, ...] = ()
    match: str = ""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 < self.ratio < float("inf"):
            raise ValueError(f"The ratio of {self.store} must be a positive number, got {self.ratio}.")

    def takes(self, entry: Entry) -> bool:
        """Whether a clip belongs to the source."""
        if self.split and entry.split != self.split:
            return False
        return set(self.needs) <= entry.flags and self.match in entry.name


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A source with its store and the clips that it takes."""

    source: Source
    store: ClipStore
    entries: list[Entry]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Sources in proportion.

    Attributes:
        sources: at least one.
    """

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        """Refuse a mixture of nothing."""
        if not self.sources:
            raise ValueError("A mixture needs a store: name one or more.")

    @property
    def shares(self) -> list[float]:
        """Share of the samples of each source; they add up to 1."""
        total = sum(source.ratio for source in self.sources)
        return [source.ratio / total for source in self.sources]

    def open(self) -> list[Opened]:
        """Read the index of every store.

        Raises:
            FileNotFoundError: there is no such store.
            ValueError: a store is unfinished or damaged, or a source takes none of its clips.
            OSError: a store cannot be reached.
        """
        opened = []
        for source in self.sources:
            store = ClipStore(source.store)
            entries = [entry for entry in store.entries if source.takes(entry)]
            if not entries:
                raise ValueError(f"None of the {len(store)} clips of {source.store} fits {_wish(source)}; "
                                 "`worldline data stats` says what it holds.")  # fmt: skip
            opened.append(Opened(source=source, store=store, entries=entries))
        return opened

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"format": FORMAT, "version": VERSION, "sources": [asdict(source) for source in self.sources]}

    def write(self, path: Path) -> None:
        """Write a mixture file.

        Raises:
            OSError: it cannot be written.
        """
        with atomic_file(path) as draft:
            draft.write_text(json.dumps(self.to_json(), indent=1) + "\n")


def _wish(source: Source) -> str:
    parts = [f"split {source.split!r}" if source.split else "", f"name {source.match!r}" if source.match else ""]
    parts.append(f"flags {', '.join(source.needs)}" if source.needs else "")
    return " and ".join(part for part in parts if part) or "this source"


def read(path: str | Path) -> Mixture:
    """A mixture file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no mixture file, or has an unknown key.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT or content["version"] > VERSION:
            raise ValueError("another format, or a newer one")
        return Mixture(sources=tuple(_source(entry, path.parent) for entry in content["sources"]))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no mixture {path}; `worldline data mix` writes one.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no mixture of stores: {error}.".replace("..", ".")) from error


def _source(entry: Mapping[str, Any], folder: Path) -> Source:
    unknown = set(entry) - set(Source.__dataclass_fields__)
    if unknown:
        raise ValueError(f"a source has no {sorted(unknown)[0]!r}")
    place = str(entry["store"])
    place = place if is_url(place) or Path(place).is_absolute() else str(folder / place)
    return Source(**{**entry, "store": place, "ratio": float(entry.get("ratio", 1.0))}
                  | {"needs": tuple(entry.get("needs", ()))})  # fmt: skip


def parse(words: Sequence[str]) -> Mixture:
    """What a person names: mixture files (*.json), and stores as STORE or STORE:RATIO.

    The ratios of a mixture file are kept as they are.

    Raises:
        FileNotFoundError: a mixture file is missing.
        ValueError: nothing is named, a ratio is not positive, or a file is no mixture.
    """
    sources: list[Source] = []
    for word in words:
        if word.endswith(".json"):
            sources += read(word).sources
            continue
        place, _, tail = word.rpartition(":")
        ratio = _number(tail) if place else None
        sources.append(Source(store=word) if ratio is None else Source(store=place, ratio=ratio))
    return Mixture(sources=tuple(sources))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
