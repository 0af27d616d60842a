"""Outputs appear whole or not at all: checked before work starts, written beside, renamed at the end."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_parent(path: Path) -> None:
    """Make sure that something can be written beside `path`.

    Raises:
        NotADirectoryError: a parent of the path is a file.
        PermissionError: the parent folder cannot be written.
        OSError: the disk is full.
    """
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"Cannot write {path}: {folder} is a file, not a folder.")
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 65536)
            probe.flush()
    except OSError as error:
        raise explain(error, path) from error


def explain(error: OSError, path: Path) -> OSError:
    """The same error as one sentence about `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(f"Cannot write {path}: the disk is full; free some space or choose another place.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionError(f"Cannot write {path}: {path.absolute().parent} is read-only for this user.")
    return OSError(f"Cannot write {path}: {error.strerror or error}.")


def beside(path: Path) -> Path:
    """A new name next to `path` that tells which process writes it."""
    return path.with_name(f"{path.name}.partial-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}")


def remove_stale(path: Path) -> None:
    """Delete what killed runs of this machine left beside `path`."""
    prefix = f"{path.name}.partial-{socket.gethostname()}-"
    if not path.absolute().parent.is_dir():
        return
    for leftover in path.absolute().parent.iterdir():
        if not leftover.name.startswith(prefix):
            continue
        pid = leftover.name.removeprefix(prefix).split("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            remove(leftover)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def put_in_place(finished: Path, path: Path) -> None:
    """Rename the finished file or folder to `path`; what was there is replaced, and at every instant one of both is."""
    if not path.is_dir():
        os.replace(finished, path)
        return
    if not _exchange(finished, path):  # no such call on this system: two renames
        aside = beside(path)
        os.rename(path, aside)
        try:
            os.rename(finished, path)
        except OSError:
            os.rename(aside, path)
            raise
        finished = aside
    remove(finished)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directory entries in one step (Linux renameat2 with RENAME_EXCHANGE); False where that is impossible."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd, rename_exchange = -100, 2
    return renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), rename_exchange) == 0


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; the file appears at `path` when the block ends well, and nothing stays otherwise.

    Raises:
        OSError: the disk is full or read-only, as one sentence.
    """
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    draft = beside(path)
    try:
        yield draft
        os.replace(draft, path)
    except OSError as error:
        raise (explain(error, path) if error.errno else error) from error
    finally:
        draft.unlink(missing_ok=True)
