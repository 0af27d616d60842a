"""A dataset's folder -> the jobs that make a store of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from worldline.data import adapters
from worldline.data.build import Job
from worldline.data.clips import Clip, Sequence, ranges, rebased
from worldline.scene import Scene4D

LONGEST = 150
"""Frames of a clip at most, as published preprocessors cut them."""


def jobs(dataset: str, root: Path | str, longest: int | None = LONGEST, match: str = "") -> Iterator[Job]:
    """One job per clip: each sequence cut into even clips of at most `longest` frames.

    Args:
        dataset: name of an adapter.
        root: the dataset's folder.
        longest: frames of a clip at most; None: whole sequences.
        match: only sequences with this in their name.

    Raises:
        ValueError: the dataset is not known, or no sequence matches.
        FileNotFoundError: the folder does not hold it.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}; give the root folder of {dataset}.")
    found = adapters.sequences(dataset, root)
    if found is None:
        found = list(_one_after_the_other(dataset, root))
    chosen = [sequence for sequence in found if match in sequence.name]
    if not chosen:
        among = f" with {match!r} in its name; there are {len(found)}" if found else ""
        raise ValueError(f"{root} has no sequence of {dataset}{among}.")
    for sequence in chosen:
        yield from _of_sequence(sequence, longest)


def _of_sequence(sequence: Sequence, longest: int | None) -> Iterator[Job]:
    parts = ranges(sequence.frames, longest)
    for start, stop in parts:
        name = sequence.name if len(parts) == 1 else f"{sequence.name}/{start:06d}-{stop - 1:06d}"
        yield Job(name=name, make=partial(_read, sequence, start, stop))


def _read(sequence: Sequence, start: int, stop: int) -> Clip:
    whole = (start, stop) == (0, sequence.frames)
    found = sequence.read(start, stop) if whole or sequence.cuttable else sequence.read(0, sequence.frames)
    clip = Clip(scene=found) if isinstance(found, Scene4D) else found
    return clip if whole or sequence.cuttable else rebased(clip.select(slice(start, stop)))


def _one_after_the_other(dataset: str, root: Path) -> Iterator[Sequence]:
    """Sequences of an adapter that can only convert: each is found by converting those before it again."""
    for number, scene in enumerate(adapters.convert(dataset, root)):
        name = scene.provenance.source.removeprefix(f"{dataset}/") or str(number)
        read = partial(_nth, dataset, root, number)
        yield Sequence(name=name, frames=len(scene), read=read, cuttable=False)


def _nth(dataset: str, root: Path, number: int, start: int, stop: int) -> Scene4D:
    for index, scene in enumerate(adapters.convert(dataset, root)):
        if index == number:
            return scene
    raise ValueError(f"{root} has changed while it was converted.")


def settings(dataset: str, root: Path | str, longest: int | None, match: str) -> dict[str, Any]:
    """What decides the content of the store."""
    return {"dataset": dataset, "root": str(Path(root).absolute()), "longest": longest, "match": match}
