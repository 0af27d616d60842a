"""Reading clips of a store: an index, then only the frames and arrays that are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldline.data.clips import Clip
from worldline.data.store.index import Entry, read_index, shard_file
from worldline.data.store.record import WHOLE, clip_of
from worldline.io import chunks
from worldline.io.layout import unseal
from worldline.io.storage import Storage
from worldline.scene import Scene4D

TABLES_KEPT = 4096
"""Tables of clips that a reader remembers (some kilobytes each)."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One unreadable piece of a store.

    Attributes:
        clip: its name.
        array: which array; empty when the clip's table is damaged.
        frame: which frame, None for an array that is one piece.
        file: the shard.
        reason: what is wrong.
    """

    clip: str
    array: str
    frame: int | None
    file: str
    reason: str

    def __str__(self) -> str:
        what = (
            "its table"
            if not self.array
            else self.array
            if self.frame is None
            else f"frame {self.frame} of {self.array}"
        )
        return f"clip {self.clip} is damaged: {what} cannot be read ({self.file}: {self.reason})"


class ClipStore:
    """A store of clips, on a disk or behind a URL; picklable.

    Attributes:
        storage: where it is.
        entries: its clips, sorted by name.
        settings: what it was made from.
    """

    def __init__(self, place: str | Path, *, partial: bool = False) -> None:
        """Read the index only.

        Args:
            place: folder or URL.
            partial: also open a store that is still being made.

        Raises:
            FileNotFoundError: there is no store.
            ValueError: it is unfinished, damaged or of a newer version, or nothing installed speaks the URL's protocol.
            OSError: it cannot be reached.
        """
        self.storage = Storage(place)
        self.entries, self.settings = read_index(self.storage, partial)
        self._by_name = {entry.name: entry for entry in self.entries}
        self._tables: OrderedDict[str, StoredClip] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": OrderedDict()}

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[StoredClip]:
        return (self[entry.name] for entry in self.entries)

    def __getitem__(self, name: str) -> StoredClip:
        """A clip by its name.

        Raises:
            KeyError: there is none.
            ValueError: its table is damaged.
        """
        if name in self._tables:
            self._tables.move_to_end(name)
        else:
            self._tables[name] = StoredClip(self.storage, self._by_name[name])
            while len(self._tables) > TABLES_KEPT:
                self._tables.popitem(last=False)
        return self._tables[name]

    def find(self, name: str) -> StoredClip:
        """A clip by its name, or by the only one that ends with it.

        Raises:
            ValueError: there is none, or there are several.
        """
        if name in self._by_name:
            return self[name]
        alike = [entry.name for entry in self.entries if entry.name.endswith(name)]
        if len(alike) != 1:
            few = ", ".join(entry.name for entry in self.entries[:3])
            raise ValueError(f"{self.storage} has {len(alike)} clips whose names end with {name!r}; "
                             f"its {len(self)} clips are called {few}{' ...' if len(self) > 3 else ''}.")  # fmt: skip
        return self[alike[0]]

    def damages(self) -> Iterator[tuple[Entry, list[Damage]]]:
        """Read every byte; yields each clip with what is wrong in it."""
        for entry in self.entries:
            try:
                yield entry, self[entry.name].damages()
            except (ValueError, FileNotFoundError) as error:
                file = f"{self.storage}/{shard_file(entry.shard)}"
                yield entry, [Damage(clip=entry.name, array="", frame=None, file=file, reason=str(error))]


class StoredClip:
    """One clip of a store.

    Attributes:
        entry: what the index says.
        metadata: size, scale, provenance and the table of chunks.
    """

    def __init__(self, storage: Storage, entry: Entry) -> None:
        self.entry = entry
        self._storage, self._file = storage, shard_file(entry.shard)
        metadata = unseal(storage.read_ranges(self._file, [entry.table])[0])
        if metadata is None or metadata["name"] != entry.name:
            raise ValueError(self._damage("", None, "the table's checksum is wrong"))
        self.metadata: dict[str, Any] = metadata
        self._whole: dict[str, np.ndarray] = {}
        self._edges: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return self.entry.frames

    def _damage(self, array: str, frame: int | None, reason: str) -> str:
        file = f"{self._storage}/{self._file}"
        return f"{Damage(clip=self.entry.name, array=array, frame=frame, file=file, reason=reason)}."

    def whole(self, name: str) -> np.ndarray:
        """One of the arrays that are one piece (intrinsics, cam2world, timestamps), of all frames; remembered."""
        if name not in self._whole:
            self._whole[name] = self.arrays([name], [])[name]
        return self._whole[name]

    def arrays(self, names: Collection[str], frames: list[int]) -> dict[str, np.ndarray]:
        """Some arrays of some frames [len(frames), ...]; only their chunks are read. Unknown names are left out.

        Raises:
            IndexError: there is no such frame.
            ValueError: a chunk is missing or damaged; says which.
        """
        if any(not 0 <= frame < len(self) for frame in frames):
            raise IndexError(f"Clip {self.entry.name} has frames 0 to {len(self) - 1}, not {frames}.")
        table = self.metadata["arrays"]
        names = [name for name in names if name in table]
        plan = [(name, row) for name in names for row in range(1 if name in WHOLE else len(frames))]
        spans = [self._span(name, 0 if name in WHOLE else frames[row]) for name, row in plan]
        out = {}
        for name in names:
            lead = [1] if name in WHOLE else [len(frames)]
            out[name] = np.empty([*lead, *table[name]["shape"]], table[name]["dtype"])
        for (name, row), piece in zip(plan, _read_joined(self._storage, self._file, spans), strict=True):
            target = out[name][row : row + 1]  # a view, even of numbers
            try:
                chunks.decode(piece, target.dtype, target.shape, out=target)
            except chunks.DamagedChunk as error:
                raise ValueError(self._damage(name, None if name in WHOLE else frames[row], str(error))) from error
        return {name: values[0] if name in WHOLE else values for name, values in out.items()}

    def _span(self, name: str, frame: int) -> tuple[int, int]:
        if name not in self._edges:
            row = self.metadata["arrays"][name]
            self._edges[name] = np.cumsum([row["offset"], *row["lengths"]]).tolist()
        edges = self._edges[name]
        return edges[frame], edges[frame + 1] - edges[frame]

    def read(self, frames: slice | None = None, fields: Collection[str] | None = None) -> Clip:
        """The clip, or consecutive frames of it, in the world of the whole clip.

        Args:
            frames: which; all by default. A step of 1 only: flow leads to the next frame.
            fields: names of arrays (`entry.arrays`); all by default. "points" stands for depth as well. What is left
                out is absent (video black, points nowhere valid).

        Raises:
            ValueError: the range is empty or has a step, or a chunk is missing or damaged.
        """
        chosen = list(range(len(self)))[frames or slice(None)]
        if not chosen or (len(chosen) > 1 and chosen[1] != chosen[0] + 1):
            raise ValueError(
                f"Clip {self.entry.name} has {len(self)} consecutive frames; {frames} chooses none of them."
            )
        table = self.metadata["arrays"]
        wanted = set(table) if fields is None else set(fields)
        wanted |= {"depth", "valid"} if "points" in wanted else set()
        wanted |= {"flow_valid"} if "scene_flow" in wanted else set()
        found = self.arrays([name for name in table if name in wanted and name not in WHOLE], chosen)
        found |= {name: self.whole(name) for name in WHOLE if name in table}
        clip = clip_of(found, self.metadata, chosen)
        return clip if chosen[-1] == len(self) - 1 else clip.select(slice(0, len(chosen)))

    def scene(self, frames: slice | None = None) -> Scene4D:
        """The scene alone; see `read`."""
        return self.read(frames).scene

    def damages(self) -> list[Damage]:
        """Every chunk that is missing or wrong."""
        found = []
        file = f"{self._storage}/{self._file}"
        for name, row in self.metadata["arrays"].items():
            spans = [self._span(name, frame) for frame in range(len(row["lengths"]))]
            for frame, piece in enumerate(_read_joined(self._storage, self._file, spans)):
                try:
                    chunks.decode(piece, np.dtype(row["dtype"]), tuple(row["shape"]))
                except chunks.DamagedChunk as error:
                    where = None if name in WHOLE else frame
                    found.append(Damage(clip=self.entry.name, array=name, frame=where, file=file, reason=str(error)))
        return found


def _read_joined(storage: Storage, file: str, spans: list[tuple[int, int]]) -> list[bytes]:
    """Parts of a file; those that lie one after another are one request."""
    joined: list[list[int]] = []
    for offset, length in spans:
        if joined and sum(joined[-1]) == offset:
            joined[-1][1] += length
        else:
            joined.append([offset, length])
    blocks = iter(storage.read_ranges(file, [(o, n) for o, n in joined]))
    pieces: list[bytes] = []
    block, start, end = memoryview(b""), 0, -1
    for offset, length in spans:
        if offset != end:
            block, start = memoryview(next(blocks)), offset
        end = offset + length
        pieces.append(bytes(block[offset - start : end - start]))
    return pieces
