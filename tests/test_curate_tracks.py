"""Tracks of a first frame: from a scene with exact truth, and from files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from curate_case import SIZE, equal, noise_video, tracked
from worldline.data.curate.config import GateConfig
from worldline.data.curate.follow import carry_on, follow_scene, spread, track_error, without_speckle
from worldline.data.curate.gates import measure, reprojection
from worldline.data.curate.given import GivenTracks, camera_motion, fit_lens
from worldline.data.synthetic import RenderConfig, render_clip
from worldline.geometry import camera, pointmap
from worldline.geometry.pose import se3_exp
from worldline.render.splat import splat
from worldline.scene import Scene4D, Video


class TrueFlow:
    """Optical flow of a scene's truth, for the frames in the order in which they are asked for."""

    def __init__(self, scene: Scene4D) -> None:
        cameras = scene.cameras
        assert cameras is not None
        self.pairs = []
        for t in range(len(scene) - 1):
            forth = self.flow(scene, t, t + 1, scene.points[t] + scene.scene_flow[t])
            back = torch.full_like(forth, torch.nan)
            target = (camera.pixel_grid(scene.size) + forth).round().long()
            inside = scene.valid[t] & (target >= 0).all(-1)
            inside &= (target[..., 0] < scene.size[1]) & (target[..., 1] < scene.size[0])
            moved = pointmap.to_camera(scene.points[t] + scene.scene_flow[t], cameras.cam2world[t + 1])
            v, u = target[..., 1][inside], target[..., 0][inside]
            there = pointmap.scene_depth(scene)[t + 1][v, u]
            front = (moved[inside][:, 2] - there).abs() < 0.05 * there
            back[v[front], u[front]] = -forth[inside][front]
            back = torch.where(back.isnan(), spread_near(back), back)
            self.pairs += [forth, back]

    @staticmethod
    def flow(scene: Scene4D, now: int, after: int, points: torch.Tensor) -> torch.Tensor:
        assert scene.cameras is not None
        local = pointmap.to_camera(points, scene.cameras.cam2world[after])
        return camera.project(local, scene.cameras.intrinsics[after]) - camera.pixel_grid(scene.size)

    def __call__(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return self.pairs.pop(0).numpy()


def spread_near(flow: torch.Tensor) -> torch.Tensor:
    """Mean of the known among the eight neighbours; NaN where none is."""
    windows = torch.nn.functional.pad(flow.movedim(-1, 0), (1, 1, 1, 1), value=torch.nan)
    return windows.unfold(1, 3, 1).unfold(2, 3, 1).flatten(-2).nanmean(-1).movedim(0, -1)


@pytest.fixture(scope="module")
def clip() -> Scene4D:
    return render_clip(6, frames=8, size=(64, 96), config=RenderConfig(shadows=False))


def test_tracks_from_true_flow_are_true(clip: Scene4D) -> None:
    found = follow_scene(clip, clip.size, TrueFlow(clip))
    error = track_error(found, clip.extras["tracks"], clip.extras["visible_from_reference"])
    assert error.moving < 0.5 * error.moving_if_still and error.visibility > 0.9
    assert error.still < 0.05 * float(clip.points[0, ..., 2].median())
    true = (clip.extras["tracks"] - clip.extras["tracks"][:1]).norm(dim=-1).amax(0) > 0.02
    assert float((found.moving & true).sum()) > 0.6 * float((found.moving | true).sum())
    assert float((found.moving & ~true).sum()) < 0.1 * float((~true).sum())
    assert reprojection(found) < 0.5


def test_the_cameras_motion_is_not_in_the_tracks(clip: Scene4D) -> None:
    found = follow_scene(clip, clip.size, TrueFlow(clip))
    still = found.valid & ~found.moving
    assert clip.cameras is not None
    assert float((clip.cameras.cam2world[-1] - clip.cameras.cam2world[0]).abs().max()) > 0.05
    assert equal(found.tracks.points[-1][still], found.tracks.points[0][still])
    local = pointmap.to_camera(found.tracks.points[-1].double(), clip.cameras.cam2world[-1].double())
    assert float((local.float() - found.tracks.points[0])[still].norm(dim=-1).median()) > 0.02


def test_a_grid_of_another_size_lies_on_its_own_rays(clip: Scene4D) -> None:
    found = follow_scene(clip, (40, 56), TrueFlow(clip))
    assert found.tracks.points.shape == (8, 40, 56, 3) and found.tracks.cameras is not None
    uv = camera.project(found.tracks.points[0].double(), found.tracks.cameras.intrinsics[0])
    off = (uv - camera.pixel_grid((40, 56), torch.float64))[found.valid]
    assert float(off.abs().max()) < 1e-3


def test_a_scene_without_cameras_is_refused(clip: Scene4D) -> None:
    with pytest.raises(ValueError, match="cameras"):
        follow_scene(replace(clip, cameras=None), clip.size)


def test_hidden_points_go_on_as_their_neighbours() -> None:
    offset = torch.zeros(3, 6, 6, 3)
    offset[1:, ..., 0] = 2.0
    known = torch.ones(3, 6, 6, dtype=torch.bool)
    known[1, 2:4, 2:4], known[2] = False, False
    hidden = torch.where(known[..., None], offset, torch.full_like(offset, 99.0))
    out = carry_on(hidden, known, torch.ones(6, 6, dtype=torch.bool))
    assert torch.allclose(out, offset)
    assert bool((carry_on(hidden, known, torch.zeros(6, 6, dtype=torch.bool)) == 0).all())
    assert torch.allclose(spread(offset[1], torch.eye(6, dtype=torch.bool)), offset[1])


def test_speckle_goes_and_holes_close() -> None:
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[5:20, 5:20], mask[10:14, 10:14], mask[30, 30] = True, False, True
    out = without_speckle(mask, 0.001)
    assert bool(out[12, 12]) and not bool(out[30, 30])


def given(path: Path, **change: object) -> tuple[Path, Video, torch.Tensor]:
    """Tracks of the exact case as somebody's file, in camera coordinates that hold the camera's motion."""
    video = noise_video()
    exact = tracked(video).tracks
    assert exact.cameras is not None
    local = pointmap.to_camera(exact.points, exact.cameras.cam2world.float())
    arrays = {"points_camera": local.numpy(), "visible": exact.visible.numpy(), **change}
    path.mkdir(exist_ok=True)
    np.savez(path / "a.npz", **{k: v for k, v in arrays.items() if v is not None})
    return path, video, exact.points


def test_given_tracks_lose_the_cameras_motion(tmp_path: Path) -> None:
    folder, video, truth = given(tmp_path / "t")
    found = GivenTracks(folder=folder)("a", video, SIZE)
    assert float((found.tracks.points - truth).norm(dim=-1).max()) < 2e-3
    assert found.notes["lens_error_px"] < 0.01 and found.notes["camera_inliers"] > 0.7
    assert bool(found.moving.any()) and float(found.moving.float().mean()) < 0.2
    numbers = measure(video, found, splat, GateConfig())
    assert numbers["still"] < 0.95 and numbers["changed"] == 0
    smaller = GivenTracks(folder=folder)("a", video, (16, 24))
    assert smaller.tracks.points.shape == (6, 16, 24, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points_camera": None}, "either"),
        ({"visible": None}, "visible"),
        ({"points_camera": np.zeros((6, 5, 3), np.float32)}, "T, H, W, 3"),
        ({"points_camera": np.zeros((2, *SIZE, 3), np.float32), "visible": np.ones((2, *SIZE), bool)}, "2 frames"),
        ({"points_camera": None, "points_world": np.zeros((6, *SIZE, 3), np.float32)}, "cam2world"),
        ({"visible": np.zeros((6, *SIZE), bool)}, "0 points"),
    ],
)
def test_given_tracks_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    folder, video, _ = given(tmp_path / "t", **change)
    with pytest.raises(ValueError, match=words):
        GivenTracks(folder=folder)("a", video, SIZE)


def test_missing_and_damaged_tracks_are_refused_by_name(tmp_path: Path) -> None:
    tracker = GivenTracks(folder=tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    for name, words in (("none", "no tracks"), ("bad", "damaged")):
        with pytest.raises(ValueError, match=words):
            tracker(name, noise_video(), SIZE)
    assert tracker.identity("bad") != tracker.identity("none")


def test_the_camera_is_found_among_things_that_move() -> None:
    g = torch.Generator().manual_seed(0)
    points = torch.rand(1, 20, 30, 3, generator=g).double() * 2 + torch.tensor([-1.0, -1.0, 3.0])
    pose = se3_exp(torch.tensor([0.1, -0.05, 0.2, 0.02, 0.05, -0.03], dtype=torch.float64))
    moved = points.clone()
    moved[:, :8] += 0.5  # two fifths go their own way
    local = pointmap.to_camera(moved, pose[None])
    poses, share = camera_motion(torch.cat([points, local]), torch.ones(2, 20, 30, dtype=torch.bool))
    assert float((poses[1] - pose).abs().max()) < 1e-3 and 0.55 < share < 0.65


def test_the_lens_is_found_from_points() -> None:
    k = torch.tensor([[50.0, 0, 20], [0, 55, 17], [0, 0, 1]], dtype=torch.float64)
    rays = camera.camera_rays(k, (30, 40)).flatten(0, 1)
    uv = camera.pixel_grid((30, 40), torch.float64).flatten(0, 1)
    assert torch.allclose(fit_lens(uv, rays[:, :2]), k, atol=1e-9)
    with pytest.raises(ValueError, match="too few"):
        fit_lens(uv[:4], rays[:4, :2])
