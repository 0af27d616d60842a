"""A folder of files on a local disk or behind any URL that fsspec knows (s3://, gs://, memory://, ...).

This is the one place that opens such URLs. Files are written whole: on a local disk beside their place and renamed, on
object stores by one upload, which those make visible only when it is complete.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldline.io.atomic import atomic_file, beside, explain, remove_stale

_DRAFT = "draft"


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL and not a path of this machine."""
    return "://" in str(place) and not str(place).startswith("file://")


class Storage:
    """Files below one folder, by names relative to it ("shards/a.bin").

    Attributes:
        place: the folder as people name it.
        local: its path on this machine, None behind a URL.
    """

    def __init__(self, place: str | Path) -> None:
        """Remember the place; nothing is read.

        Raises:
            ValueError: no installed package speaks the URL's protocol.
        """
        self.place = str(place).removeprefix("file://").rstrip("/") or "/"
        self.local = None if is_url(place) else Path(self.place).expanduser().absolute()
        self._fs: Any = None
        self._root = self.place
        if self.local is None:
            self._open()

    def _open(self) -> None:
        import fsspec

        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{self.place} cannot be opened: {error}".rstrip(".") + ".") from error

    def __getstate__(self) -> str:
        return self.place  # connections belong to their process

    def __setstate__(self, place: str) -> None:
        self.__init__(place)  # type: ignore[misc]

    def __str__(self) -> str:
        return self.place

    @property
    def shared(self) -> bool:
        """Whether other processes see the same files."""
        return not self.place.startswith("memory://")

    def _remote(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _said(self, verb: str, name: str) -> Iterator[None]:
        """Errors as one OSError of one sentence; a missing file stays FileNotFoundError."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no {self.place}/{name}.") from error
        except OSError as error:
            if self.local is not None and error.errno:
                raise explain(error, self.local / name) if verb == "written" else error from error
            raise OSError(f"{self.place}/{name} cannot be {verb}: {error}") from error
        except Exception as error:
            if self.local is not None:
                raise
            raise OSError(f"{self.place}/{name} cannot be {verb}: {error}") from error  # each client has its own kinds

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
        """
        with self._said("read", name):
            return (self.local / name).read_bytes() if self.local is not None else self._fs.cat_file(self._remote(name))

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of a file, each given as (offset, length); a part may come back short if the file is.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
        """
        with self._said("read", name):
            if self.local is not None:
                handle = os.open(self.local / name, os.O_RDONLY)
                try:
                    return [os.pread(handle, length, offset) for offset, length in ranges]
                finally:
                    os.close(handle)
            paths = [self._remote(name)] * len(ranges)
            starts, ends = [o for o, _ in ranges], [o + n for o, n in ranges]
            return self._fs.cat_ranges(paths, starts, ends, on_error="raise")

    def write(self, name: str, data: bytes) -> None:
        """A whole file, replacing what was there.

        Raises:
            OSError: it cannot be written.
        """
        with self._said("written", name):
            if self.local is not None:
                with atomic_file(self.local / name) as draft:
                    draft.write_bytes(data)
            else:
                self._fs.pipe_file(self._remote(name), data)

    def draft(self, folder: str) -> Path:
        """A local file to write something long to, for `adopt`; drafts of killed processes are removed."""
        if self.local is None:
            handle, name = tempfile.mkstemp(prefix="worldline-")
            os.close(handle)
            return Path(name)
        parent = self.local / folder
        with self._said("written", folder):
            parent.mkdir(parents=True, exist_ok=True)
        remove_stale(parent / _DRAFT)
        return beside(parent / _DRAFT)

    def adopt(self, draft: Path, name: str) -> None:
        """Make a draft the file `name`, and remove the draft.

        Raises:
            OSError: it cannot be written.
        """
        with self._said("written", name):
            if self.local is not None:
                os.replace(draft, self.local / name)
                return
            self._fs.put_file(str(draft), self._remote(name))
            draft.unlink()

    def names(self, folder: str, suffix: str) -> list[str]:
        """Files of a folder that end with `suffix`, relative to the place, sorted; none if there is no such folder."""
        with self._said("listed", folder):
            if self.local is not None:
                files = (self.local / folder).glob(f"*{suffix}")
                return sorted(f"{folder}/{file.name}" for file in files if not file.name.startswith(f"{_DRAFT}.part"))
            self._fs.invalidate_cache()
            if not self._fs.exists(self._remote(folder)):
                return []
            found = (path.rsplit("/", 1)[-1] for path in self._fs.ls(self._remote(folder), detail=False))
            return sorted(f"{folder}/{name}" for name in found if name.endswith(suffix))

    def exists(self, name: str) -> bool:
        """Whether there is such a file (or folder, where the store has folders)."""
        with self._said("read", name):
            return (self.local / name).exists() if self.local is not None else self._fs.exists(self._remote(name))

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._said("read", name):
            return (self.local / name).stat().st_size if self.local is not None else self._fs.size(self._remote(name))

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        with self._said("removed", name):
            if self.local is not None:
                (self.local / name).unlink(missing_ok=True)
            elif self._fs.exists(self._remote(name)):
                self._fs.rm_file(self._remote(name))
