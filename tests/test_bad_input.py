"""Every row of "Bad input": one clear sentence on stderr, exit code 2, nothing half-written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import worldline as wl
from worldline.cli import main
from worldline.io.video import write_video
from worldline.scene import Video


def clip(frames: int = 4, size: tuple[int, int] = (48, 64)) -> Video:
    """A pattern that pans by two pixels per frame."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pans = [((x + 2 * t) * 9 % 256, y * 7 % 256, (x + y + 2 * t) * 5 % 256) for t in range(frames)]
    return Video(
        frames=torch.stack([torch.stack(channels, -1) for channels in pans]).to(torch.uint8),
        timestamps=torch.arange(frames, dtype=torch.float64) / 10,
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.mp4"
    write_video(path, clip())
    return path


def refused(capsys: pytest.CaptureFixture[str], words: list[str], *says: str) -> None:
    """The command exits with 2 and one line that holds every one of `says`."""
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2, captured.err
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    for word in says:
        assert re.search(word, lines[0]), lines[0]


def nothing_left(folder: Path, *expected: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)


def test_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["reconstruct", str(tmp_path / "no.mp4"), "-o", str(tmp_path / "out")], "no.mp4")
    nothing_left(tmp_path)


def test_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.mp4").touch()
    refused(capsys, ["reconstruct", str(tmp_path / "empty.mp4"), "-o", str(tmp_path / "out")], "empty")
    nothing_left(tmp_path, "empty.mp4")


def test_truncated(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: len(data) // 3])
    refused(capsys, ["reconstruct", str(good), "-o", str(tmp_path / "out")], "good.mp4")
    nothing_left(tmp_path, "good.mp4")


def test_not_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.mp4").write_text("not a video\n" * 100)
    refused(capsys, ["reconstruct", str(tmp_path / "notes.mp4"), "-o", str(tmp_path / "out")], "notes.mp4")
    nothing_left(tmp_path, "notes.mp4")


def test_one_pixel_wide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from worldline.render.picture import save_png

    (tmp_path / "thin").mkdir()
    for index in range(3):
        save_png(tmp_path / "thin" / f"{index}.png", np.zeros((64, 1, 3), np.uint8))
    refused(capsys, ["reconstruct", str(tmp_path / "thin"), "-o", str(tmp_path / "out")], "1 pixel", "at least")
    nothing_left(tmp_path, "thin")


def test_one_frame_is_reconstructed_and_says_what_cannot_be_known(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", clip(frames=1))
    assert main(["reconstruct", str(tmp_path / "one.mp4"), "-o", str(tmp_path / "out"), "--json"]) == 0
    scene = wl.load(tmp_path / "out")
    assert len(scene) == 1 and torch.isfinite(scene.points).all() and scene.cameras is not None
    assert scene.flow_valid is None or not scene.flow_valid.any()
    assert any("one frame" in warning.lower() for warning in scene.provenance.report["warnings"])


def test_8k_is_read_at_working_size(tmp_path: Path) -> None:
    write_video(tmp_path / "8k.mp4", clip(frames=2, size=(4320, 7680)))
    scene = wl.reconstruct(tmp_path / "8k.mp4")
    assert scene.size[0] * scene.size[1] < 100_000 and len(scene) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value: float) -> None:
    frames = clip().rgb().clone()
    frames[1, 3, 3, 0] = value
    with pytest.raises(ValueError, match="(?i)nan|finite"):
        wl.reconstruct(Video(frames=frames, timestamps=clip().timestamps))


def test_output_exists(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("keep me")
    refused(capsys, ["reconstruct", str(good), "-o", str(tmp_path / "out")], "exists")
    assert (tmp_path / "out" / "precious.txt").read_text() == "keep me"


def test_output_is_a_file(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("keep me")
    refused(capsys, ["reconstruct", str(good), "-o", str(tmp_path / "out"), "--overwrite"], "file")
    assert (tmp_path / "out").read_text() == "keep me"


def test_output_is_read_only(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("/proc/worldline") if os.geteuid() == 0 else tmp_path / "locked"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o555)
    refused(capsys, ["reconstruct", str(good), "-o", str(folder / "out")], "(?i)cannot|permission|read-only|no such")


def test_full_disk(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from worldline.io import store

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "out"))

    monkeypatch.setattr(store.SceneWriter, "append", full)
    refused(capsys, ["reconstruct", str(good), "-o", str(tmp_path / "out"), "--json"], "(?i)no space")
    assert not (tmp_path / "out").exists()


def test_unknown_system(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reconstruct", str(good), "-o", str(tmp_path / "out"), "--system", "magic"]
    refused(capsys, words, "magic", "motioncrafter-mini")
    nothing_left(tmp_path, "good.mp4")


@pytest.mark.parametrize("frames", ["10:20", "3:1", "a:b", "0:4:0"])
def test_frames_outside(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], frames: str) -> None:
    refused(capsys, ["reconstruct", str(good), "-o", str(tmp_path / "out"), "--frames", frames], frames.split(":")[0])
    nothing_left(tmp_path, "good.mp4")


@pytest.mark.parametrize("size", ["8x8", "big", "0x100"])
def test_bad_size(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    refused(capsys, ["reconstruct", str(good), "-o", str(tmp_path / "out"), "--size", size], "size")
    nothing_left(tmp_path, "good.mp4")


def test_info_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["info", str(tmp_path)], tmp_path.name)
    refused(capsys, ["info", str(tmp_path / "nowhere")], "nowhere")
