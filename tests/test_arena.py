"""Arrays in files: same values, no memory held once released, never on a file system that is memory."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from worldline.io import arena as arenas
from worldline.io.arena import Arena, in_memory, scratch_folder

MOUNTS = """/dev/vda / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
/dev/vdb /tmp/large ext4 rw 0 0
tmpfs /mnt/my\\040disk tmpfs rw 0 0
"""


def file_bytes() -> int:
    """Resident pages of this process that belong to files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssFile")).split()[1])


def test_arrays_beyond_the_budget_live_in_files_and_work_the_same(tmp_path: Path) -> None:
    arena = Arena(1000, tmp_path)
    small, large, none = arena.zeros((10,), np.float32), arena.zeros((4, 250), np.float32), arena.zeros((0, 3), np.int8)
    assert small.base is None and large.base is not None and none.shape == (0, 3)
    large[1, 3] = 7
    arena.release()
    assert large[1, 3] == 7 and large.sum() == 7 and large.dtype == np.float32
    assert not list(tmp_path.iterdir()), "files are nameless"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_released_pages_are_no_longer_this_processs_and_what_was_written_stays(tmp_path: Path) -> None:
    arena = Arena(0, tmp_path)
    large = arena.zeros((64, 1 << 18), np.uint8)
    large[:] = 3
    held = file_bytes()
    arena.release()
    assert file_bytes() < held - large.nbytes // 2
    assert (large[::7] == 3).all()


def test_an_array_that_is_gone_gives_its_file_back(tmp_path: Path) -> None:
    arena = Arena(0, tmp_path)
    large = arena.zeros((1000,), np.float64)
    assert len(arena._mappings) == 1
    del large
    gc.collect()
    arena.release()
    assert not arena._mappings


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="choose fewer frames or a smaller size, or set TMPDIR"):
        Arena(0, tmp_path).zeros((1000,), np.float32)


@pytest.mark.parametrize(
    ("folder", "memory"),
    [("/tmp", True), ("/tmp/a", True), ("/tmp/large", False), ("/tmp/largest", True), ("/var/tmp", False)],
)
def test_which_folders_are_memory(folder: str, memory: bool) -> None:
    assert in_memory(folder, MOUNTS) is memory


def test_scratch_is_where_tmpdir_says_else_on_a_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert scratch_folder() == str(tmp_path)
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(arenas, "in_memory", lambda folder, mounts: folder == str(tmp_path))
    assert scratch_folder() == "/var/tmp"
