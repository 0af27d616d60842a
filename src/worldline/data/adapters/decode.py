"""Reading the files of a clip one by one, so that a damaged one is known by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from worldline.data.clips import DamagedFile, Sequence, reading
from worldline.scene import Scene4D

Found = TypeVar("Found")


def one(reader: Callable[..., Found], path: Path, *arguments: Any) -> Found:
    """What a reader makes of one file.

    Raises:
        DamagedFile: it is missing or cannot be decoded.
    """
    with reading(path):
        return reader(path, *arguments)


def stack(reader: Callable[..., Tensor], paths: Iterable[Path], *arguments: Any) -> Tensor:
    """What a reader makes of the files of consecutive frames, stacked.

    Raises:
        DamagedFile: a file is missing, cannot be decoded, or has another size than those before it.
    """
    found: list[Tensor] = []
    for path in paths:
        value = one(reader, path, *arguments)
        if found and value.shape != found[0].shape:
            raise DamagedFile(
                path, f"its size {list(value.shape)} is not that of the frames before, {list(found[0].shape)}"
            )
        found.append(value)
    return torch.stack(found)


def rows(path: Path, table: Tensor, start: int, stop: int) -> Tensor:
    """The rows of a table for the frames start..stop.

    Raises:
        DamagedFile: it has too few.
    """
    if len(table) < stop:
        raise DamagedFile(path, f"it has {len(table)} rows, and frame {stop - 1} needs one")
    return table[start:stop]


def listed(name: str, part: Callable[..., Iterable[Sequence]], *arguments: Any) -> Iterator[Sequence]:
    """The sequences of one part of a data set; a damaged list gives one sequence that says so when it is read.

    So a data set is converted up to its damaged files, which are reported with the others.
    """
    try:
        yield from part(*arguments)
    except DamagedFile as error:
        yield Sequence(name=name, frames=1, read=partial(_refuse, error), cuttable=False)


def _refuse(error: DamagedFile, start: int, stop: int) -> Scene4D:
    raise error


def same_size(path: Path, value: Tensor, size: tuple[int, int]) -> Tensor:
    """The value itself, if it has the size of the image.

    Raises:
        DamagedFile: it has another one.
    """
    if tuple(value.shape[:2]) != size:
        raise DamagedFile(path, f"its size {list(value.shape[:2])} is not the {list(size)} of the image")
    return value


def name_of(folder: Path, root: Path) -> str:
    """The name of a sequence: its path below the root, or its own name if it is the root."""
    folder, root = Path(folder).resolve(), Path(root).resolve()
    return folder.name if folder == root else folder.relative_to(root).as_posix()
