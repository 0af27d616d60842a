"""Large arrays that need not be in memory: beyond a budget they live in nameless files on a disk.

A mapped file's pages count as resident memory while they are looked at, but the kernel writes them back and drops them
when it wants to; `release` drops this process's hold on them at once, so that its resident memory stays that of the
part being worked on.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
"""File systems whose files are memory."""


class Arena:
    """Hands out zeroed arrays: from memory while the budget lasts, then from files that vanish with them.

    May be used from several threads at once.
    """

    def __init__(self, budget_bytes: int, folder: str | Path | None = None) -> None:
        """Take how much memory may be used, and a folder for the files (default: `scratch_folder()`)."""
        self._left, self._folder = budget_bytes, folder
        self._mappings: list[weakref.ref[mmap.mmap]] = []

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """A zeroed array of the given shape.

        Raises:
            OSError: there is no room on the disk.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size <= max(self._left, 0):
            self._left -= size
            return np.zeros(shape, dtype)
        mapping = self._map(size)
        self._mappings.append(weakref.ref(mapping))
        return np.frombuffer(mapping, dtype).reshape(shape)

    def _map(self, size: int) -> mmap.mmap:
        folder = scratch_folder() if self._folder is None else self._folder
        with tempfile.TemporaryFile(prefix="worldline-", dir=folder) as file:
            try:
                _reserve(file.fileno(), size)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"There is no room for {size / 2**30:.1f} GiB of intermediate results in {folder}; choose fewer "
                    "frames or a smaller size, or set TMPDIR to a folder on a larger disk.",
                ) from error
            return mmap.mmap(file.fileno(), size)  # the mapping outlives the closed, nameless file

    def release(self) -> None:
        """Let go of all pages of mapped files that this process holds; what is in them stays and is read again."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        alive = []
        for reference in self._mappings:
            if (mapping := reference()) is not None:
                mapping.madvise(mmap.MADV_DONTNEED)
                alive.append(reference)
        self._mappings = alive


def _reserve(descriptor: int, size: int) -> None:
    """Make room for all of a file now: a full disk is an error here, but a crash at the first write to a mapping."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def scratch_folder() -> str:
    """A folder for large temporary files: TMPDIR if it is set, else the usual one unless its files are in memory."""
    usual = tempfile.gettempdir()
    if os.environ.get("TMPDIR"):
        return usual
    try:
        mounts = Path("/proc/mounts").read_text()
    except OSError:
        return usual
    for folder in (usual, "/var/tmp", os.getcwd()):
        if os.access(folder, os.W_OK) and not in_memory(folder, mounts):
            return folder
    return usual


def in_memory(folder: str, mounts: str) -> bool:
    """Whether the files of a folder are in memory, given the text of /proc/mounts."""
    path, best, kind = os.path.realpath(folder), "", ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind in IN_MEMORY
