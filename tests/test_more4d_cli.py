"""A picture begins to move and is seen from elsewhere: the verbs and the commands, with small untrained networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import worldline as wl
from more4d_tiny import TINY
from worldline import api, pictures
from worldline.cli import main
from worldline.data.synthetic import render_clip
from worldline.evaluation.consistency import consistency
from worldline.geometry.pointmap import scene_depth
from worldline.scene import Scene4D, Tracks4D
from worldline.systems.more4d import depth, infer, pretrained, splatting
from worldline.systems.more4d.networks import build
from worldline.viewer.frames import Look, frames_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, its depth and small weights."""
    root = tmp_path_factory.mktemp("picture")
    torch.manual_seed(0)
    pretrained.export(build(TINY), root / "mini.safetensors", {"sampling": {"steps": 2}})
    rgb = torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(1))
    Image.fromarray((rgb * 255).byte().numpy()).save(root / "bear.png")
    np.save(root / "depth.npy", np.full((64, 96), 2.0, np.float32))
    return root


@pytest.fixture(scope="module")
def tracks(folder: Path) -> Path:
    words = ["generate", str(folder / "bear.png"), "--prompt", "a ball rolls", "-o", str(folder / "t")]
    words += ["--depth", str(folder / "depth.npy"), "--weights", str(folder / "mini.safetensors"), "--json"]
    assert main(words) == 0
    return folder / "t"


@pytest.fixture(scope="module")
def scene() -> Scene4D:
    return render_clip(1_500_000_000, frames=4, size=(32, 48), category="camera_only")


def test_tracks_are_stored_with_how_they_came_about(tracks: Path) -> None:
    stored = wl.load(tracks)
    assert isinstance(stored, Tracks4D) and len(stored) == TINY.frames and stored.reference == 0
    assert tuple(stored.colors.shape[:2]) == (64, 96)  # four times the model's pixels
    settings = stored.provenance.settings
    assert settings["prompt"] == "a ball rolls" and settings["steps"] == 2 and settings["depth"].endswith("depth.npy")
    assert stored.provenance.system == "more4d-mini" and stored.provenance.weights_sha256
    torch.testing.assert_close(stored.points[0, ..., 2], torch.full((64, 96), 2.0))


def test_the_viewer_shows_trails(tracks: Path) -> None:
    frames = frames_of(wl.load(tracks))
    lines = frames.lines(TINY.frames - 1, Look())
    assert frames.has_motion and len(lines.points) > 0 and lines.points.shape[1:] == (2, 3)
    assert len(frames.lines(0, Look()).points) == 0


def test_a_video_along_a_path_begins_with_the_picture(
    tracks: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "novel.mp4"
    words = ["synthesize", str(tracks), "--path", "orbit", "-o", str(out), "--frames", "6", "--json"]
    assert main([*words, "--weights", str(folder / "mini.safetensors")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["frames"] == 6 and said["fill"] == "model" and out.is_file()
    assert main([*words, "--weights", str(folder / "mini.safetensors")]) == 2  # it is there already
    source = wl.load(tracks)
    video = wl.synthesize(source, "orbit", frames=6, weights=str(folder / "mini.safetensors"))
    seen = splatting.render(source, splatting.input_pose(source)[None], [0])
    torch.testing.assert_close(video.frames[0][seen.coverage[0]], source.colors[seen.coverage[0]])


def test_any_scene_can_be_seen_from_elsewhere(scene: Scene4D, tmp_path: Path) -> None:
    keys = {"keyframes": [{"position": [0, 0, 0], "look_at": [0, 0, 1]}, {"position": [1, 0, 0], "look_at": [0, 0, 4]}]}
    (tmp_path / "path.json").write_text(json.dumps(keys))
    wl.save(scene, tmp_path / "scene")
    for path in ("left", "mix1", tmp_path / "path.json"):
        video = wl.synthesize(tmp_path / "scene", path, fill="nearest")
        assert len(video) == 4 and video.size == scene.size and video.fps == pytest.approx(scene.video.fps)
    assert len(wl.synthesize(scene, "left", frames=9, fill="nearest")) == 9
    with pytest.raises(FileNotFoundError, match="no camera path or file 'orbits'"):
        wl.synthesize(scene, "orbits", fill="nearest")


def test_time_runs_evenly_through_tracks(tracks: Path) -> None:
    source = wl.load(tracks)
    assert infer.times_of(source, 9)[1] == 0.5
    halfway = splatting.points_at(source, 0.5)
    torch.testing.assert_close(halfway, (source.points[0] + source.points[1]) / 2)


def test_the_check_knows_agreement_from_disagreement(scene: Scene4D) -> None:
    assert scene.cameras is not None
    poses, own = scene.cameras.cam2world, scene_depth(scene)
    same = consistency(scene, poses, 2 * own, scene.valid)
    assert same["camera_error_percent"] < 1e-3 and same["rotation_deg"] < 1e-3 and same["depth_abs_rel"] < 1e-3
    assert same["compared"] == 1 and same["depth_inliers"] == 1
    other = consistency(scene, pictures.camera_poses(scene, "orbit"), own.flip(2), scene.valid)
    assert other["camera_error_percent"] > 1 and other["rotation_deg"] > 1 and other["depth_abs_rel"] > 0.01
    assert consistency(scene, poses[:1].expand(4, 4, 4), own, scene.valid)["camera_error_percent"] is None


def test_check_reconstructs_the_video_again(scene: Scene4D, monkeypatch: pytest.MonkeyPatch) -> None:
    video = wl.synthesize(scene, "left", fill="nearest")
    asked = []
    monkeypatch.setattr("worldline.api.synthesis.reconstruct", lambda clip, **options: asked.append(clip) or scene)
    facts = api.check_synthesis(video, scene, "left")
    assert asked[0] is video and 0 < facts["compared"] <= 1 and facts["depth_abs_rel"] is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "none.png", "-o", "OUT"], "none.png"),
        (["generate", "bear.png", "-o", "OUT", "--system", "parallax"], "reconstructs videos; for this, choose one"),
        (["generate", "bear.png", "-o", "OUT", "--depth", "magic"], "no depth prior 'magic'"),
        (["generate", "bear.png", "-o", "OUT", "--depth", "none.npy"], "no depth map none.npy"),
        (["generate", "bear.png", "-o", "OUT", "--depth", "unidepth"], "needs the package unidepth"),
        (["generate", "bear.png", "-o", "OUT", "--size", "big"], "HEIGHTxWIDTH"),
        (["reconstruct", "bear.png", "-o", "OUT", "--system", "more4d-mini"], "turns pictures into tracks"),
        (["synthesize", "none", "-o", "OUT.mp4"], "none"),
        (["synthesize", "t", "-o", "OUT.gif"], "must end in"),
        (["synthesize", "t", "-o", "OUT.mp4", "--fill", "nearest", "--fps", "-1"], "frames per second"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    said: str,
    folder: Path,
    tracks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    if words[0] == "generate" and "--system" not in words:
        words += ["--weights", "mini.safetensors"]
    assert main([*words, "--json"]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not (tmp_path / "out").exists()


def test_depth_maps_in_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", depth=np.ones((4, 6)))
    Image.fromarray(np.full((4, 6), 1500, np.uint16)).save(tmp_path / "d.png")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "grey.png")
    np.save(tmp_path / "three.npy", np.ones((4, 6, 3)))
    values, scale = depth.read_depth(tmp_path / "d.png")
    assert scale == "metric" and values.shape == (4, 6) and float(values[0, 0]) == 1.5
    assert depth.read_depth(tmp_path / "d.npz")[1] == "relative"
    for name, said in (("grey.png", "8 bits"), ("three.npy", "height, width")):
        with pytest.raises(ValueError, match=said):
            depth.read_depth(tmp_path / name)


@pytest.mark.parametrize("kind", ["unidepth", "moge"])
def test_depth_packages_where_they_are_installed(kind: str) -> None:
    asked = []

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def infer(self, picture: torch.Tensor) -> dict[str, torch.Tensor]:
            asked.append(picture)
            k = (
                [[60.0, 0, 24], [0, 60, 16], [0, 0, 1]]
                if kind == "unidepth"
                else [[1.25, 0, 0.5], [0, 1.875, 0.5], [0, 0, 1]]
            )
            found = torch.full((32, 48), 3.0)
            batch = (1, 1) if kind == "unidepth" else ()
            mask = torch.arange(48).expand(32, 48) > 0
            return {"depth": found.expand(*batch, 32, 48), "mask": mask, "intrinsics": torch.tensor(k)}

    guess = depth.PackageDepth(model=Model(), kind=kind)(torch.rand(32, 48, 3))  # type: ignore[arg-type]
    assert asked[0].shape == (3, 32, 48) and (asked[0].dtype == torch.uint8) == (kind == "unidepth")
    torch.testing.assert_close(guess.intrinsics, torch.tensor([[60.0, 0, 23.5], [0, 60.0, 15.5], [0, 0, 1]]))
    assert guess.scale == "metric" and bool(guess.valid[0, 0]) == (kind == "unidepth") and float(guess.depth[1, 1]) == 3


def test_known_focal_length_replaces_the_guess(folder: Path) -> None:
    prior = depth.GivenDepth(depth=torch.full((8, 12), 2.0))
    known = pictures.KnownFocal(prior=prior, focal_px=20.0)(torch.rand(8, 12, 3))
    assert float(known.intrinsics[0, 0]) == 20 and float(known.intrinsics[0, 2]) == 5.5
    with pytest.raises(ValueError, match="makes no sense"):
        pictures.KnownFocal(prior=prior, focal_px=-1.0)(torch.rand(8, 12, 3))


def test_motion_does_not_leak_over_edges() -> None:
    from worldline.systems.more4d.representation import along_edges

    near = torch.zeros(4, 6, dtype=torch.bool)
    near[:, :3] = True
    large = near.repeat_interleave(4, 0).repeat_interleave(4, 1)
    motion = near[None, ..., None].expand(2, 4, 6, 3).float()

    def paint(mask: torch.Tensor) -> torch.Tensor:
        return mask[..., None].expand(*mask.shape, 3).float()

    grown = along_edges(motion, paint(near), 2.0 - near.float(), paint(large), 2.0 - large.float())
    torch.testing.assert_close(grown, paint(large).expand(2, -1, -1, -1), atol=1e-3, rtol=0)
    smooth = along_edges(motion * 0 + 1, paint(near), torch.ones(4, 6), paint(large) * 0, torch.ones(16, 24))
    torch.testing.assert_close(smooth, torch.ones(2, 16, 24, 3))


def test_views_kept_in_the_viewer_are_a_camera_path(tracks: Path, tmp_path: Path) -> None:
    from worldline.geometry.pose import matrix_to_quaternion
    from worldline.render.path_files import load_path
    from worldline.viewer.keyframes import KeyFrames

    source = wl.load(tracks)
    frames, wanted = frames_of(source), pictures.camera_poses(source, "orbit", 3).double()
    kept = KeyFrames(frames)
    for pose in wanted:
        kept.keep(2 * matrix_to_quaternion(pose[:3, :3]).numpy(), frames.place(pose[:3, 3].numpy()))
    (tmp_path / "path.json").write_text(kept.text())
    torch.testing.assert_close(load_path(tmp_path / "path.json").poses(3, torch.eye(4).double()), wanted)
