"""The checkpoint in the package: what it is, that it fits, that it works from picture to video without a network."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

import worldline as wl
from worldline.cli import main
from worldline.io.ledger import sha256
from worldline.scene import Video
from worldline.systems.more4d import recipes
from worldline.systems.more4d.system import MINI_CHECKPOINT
from worldline.systems.registry import card


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the embedded model asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def picture() -> Video:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    frame = torch.stack([rows, columns, (8 * columns).sin().square()], dim=-1)
    return Video(frames=frame[None], timestamps=torch.zeros(1, dtype=torch.float64))


def test_it_is_small_and_its_card_says_where_it_comes_from() -> None:
    about = json.loads(MINI_CHECKPOINT.with_suffix(".json").read_text())
    folder = MINI_CHECKPOINT.parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 24_000_000
    assert about["sha256"] == sha256(MINI_CHECKPOINT) and about["license"] == "Apache-2.0"
    assert about["stages"] == [stage.train.to_json() for stage in recipes.mini().stages]  # the recipe is what was run
    assert about["config"] == json.loads(json.dumps(recipes.mini().networks.to_dict()))
    assert {"motion", "autoencoder", "holes"} <= set(about["metrics"]) and isinstance(about["unreliable"], list)
    assert card("more4d-mini").embedded and (folder / "README.md").is_file()


def test_from_picture_to_video_without_a_network(tmp_path: Path) -> None:
    np.save(tmp_path / "depth.npy", np.linspace(4, 2, 64, dtype=np.float32)[:, None].repeat(96, 1))
    tracks = wl.generate(picture(), "a red ball rolls left", depth=tmp_path / "depth.npy", device="cpu")
    assert tuple(tracks.points.shape) == (9, 64, 96, 3) and bool(tracks.points.isfinite().all())
    assert not torch.equal(tracks.points[-1], tracks.points[0])
    video = wl.synthesize(tracks, "orbit", frames=9, device="cpu")
    shown = wl.synthesize(tracks, "orbit", frames=9, fill="nearest")
    error = (video.rgb()[0] - picture().rgb()[0]).abs().amax(-1)
    assert float((error < 2 / 255).float().mean()) > 0.9  # the first frame is the picture, where points cover it
    assert not torch.equal(video.rgb()[-1], shown.rgb()[-1])  # holes are not filled with the nearest pixel


def test_holes_are_inpainted_when_nothing_else_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "depth.npy", np.full((64, 96), 2.0, np.float32))
    tracks = wl.generate(picture(), "", depth=tmp_path / "depth.npy", device="cpu", steps=1)
    wl.save(tracks, tmp_path / "t")
    words = [
        "synthesize",
        str(tmp_path / "t"),
        "-o",
        str(tmp_path / "v.mp4"),
        "--frames",
        "3",
        "--steps",
        "1",
        "--json",
    ]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["fill"] == "model"
    assert main([*words, "--overwrite", "--system", "more4d"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["fill"] == "nearest" and "no embedded weights" in out.err
