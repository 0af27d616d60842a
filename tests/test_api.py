"""The verbs, from Python."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import worldline as wl
from worldline import api
from worldline.data.synthetic import render_clip
from worldline.scene import Video
from worldline.systems.registry import CARDS, card

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def truth() -> wl.Scene4D:
    return render_clip(1_500_000_000, frames=8, size=(48, 72), category="camera_only")


def test_every_public_name_exists() -> None:
    for name in wl.__all__:
        assert getattr(wl, name) is not None
    with pytest.raises(AttributeError):
        wl.nothing_of_that_name  # noqa: B018


def test_import_costs_nothing() -> None:
    code = "import sys, worldline; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("source", [(480, 854), (1080, 1920), (2160, 3840), (1920, 1080), (72, 120), (512, 512)])
@pytest.mark.parametrize("name", CARDS)
def test_working_size_keeps_the_aspect_and_never_enlarges(source: tuple[int, int], name: str) -> None:
    entry = card(name)
    height, width = api.working_size(source, entry)
    assert height <= source[0] and width <= source[1]
    assert height % entry.multiple == 0 and width % entry.multiple == 0
    assert height * width <= 1.05 * entry.area
    assert (width / height) / (source[1] / source[0]) == pytest.approx(1, abs=0.03)


def test_default_system_puts_every_frame_in_one_world() -> None:
    truth = render_clip(1_500_000_003, frames=8, size=(48, 72), category="camera_only")  # one focal length: it travels
    scene = wl.reconstruct(truth.video)
    assert len(scene) == len(truth) and scene.cameras is not None and scene.scene_flow is not None
    assert torch.isfinite(scene.points).all() and torch.isfinite(scene.cameras.cam2world).all()
    torch.testing.assert_close(scene.cameras.cam2world[0], torch.eye(4).to(scene.cameras.cam2world), atol=1e-5, rtol=0)
    assert not scene.flow_valid[-1].any()
    assert scene.provenance.weights_sha256 and scene.provenance.seconds > 0
    assert scene.provenance.peak_memory_bytes > 100_000_000
    assert wl.evaluate(scene, truth).value("ate_percent_path") < 3


def test_default_system_takes_no_zoom_for_a_journey(truth: wl.Scene4D) -> None:
    report = wl.reconstruct(truth.video).provenance.report
    focal = truth.cameras.focal_px
    assert report["camera"] == "rotation_only" and any("zooms" in warning for warning in report["warnings"])
    assert report["zoom"] == pytest.approx(float(focal.max() / focal.min()), rel=0.1)


def test_a_known_focal_length_is_in_pixels_of_the_source(truth: wl.Scene4D) -> None:
    focal = float(truth.cameras.focal_px[0])
    scene = wl.reconstruct(truth.video, system="parallax", focal_px=focal, size=(24, 36))
    assert float(scene.cameras.focal_px[0]) == pytest.approx(focal / 2, rel=1e-4)


def test_frames_of_a_video_in_memory_keep_their_times(truth: wl.Scene4D) -> None:
    times = torch.tensor([0.0, 0.1, 0.5, 0.6, 0.7, 0.8, 1.9, 2.0], dtype=torch.float64)
    scene = wl.reconstruct(
        Video(frames=truth.video.frames, timestamps=times), system="parallax", frames="1:7:2", size=(24, 36)
    )
    assert scene.video.timestamps.tolist() == [0.1, 0.6, 0.8]


def test_the_same_seed_gives_the_same_scene(truth: wl.Scene4D) -> None:
    first, second = (wl.reconstruct(truth.video, system="motioncrafter-mini", seed=3) for _ in range(2))
    assert torch.equal(first.points, second.points)


def test_an_interrupted_run_resumes(truth: wl.Scene4D, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    seen: list[tuple[str, int]] = []

    def stop_late(step: str, done: int, total: int) -> None:
        seen.append((step, done))
        if len([entry for entry in seen if entry[0] == seen[0][0]]) > 2:
            raise Stop

    settings = {"system": "motioncrafter-mini", "window": 4, "overlap": 2, "resume_beside": tmp_path / "out"}
    with pytest.raises(Stop):
        wl.reconstruct(truth.video, progress=stop_late, **settings)
    kept = list((tmp_path / "out.partial").iterdir())
    assert kept
    resumed = wl.reconstruct(truth.video, **settings)
    whole = wl.reconstruct(truth.video, **{**settings, "resume_beside": None})
    assert torch.equal(resumed.points, whole.points)


def test_unknown_names_are_refused(truth: wl.Scene4D) -> None:
    with pytest.raises(ValueError, match="no system 'magic'"):
        wl.reconstruct(truth.video, system="magic")
    with pytest.raises(ValueError, match="no protocol 'magic'"):
        wl.evaluate(truth, truth, protocol="magic")
    with pytest.raises(ValueError, match="no device 'abacus'"):
        wl.reconstruct(truth.video, device="abacus")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert path.read_text().count("\n") < 100
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if path.stem.startswith("01"):
        assert (module.main(tmp_path) / "zarr.json").exists() or any(tmp_path.joinpath("scene").iterdir())
        assert "focal length" in capsys.readouterr().out
