"""A standing camera that pans and zooms, as at every sports event, is not taken for one that travels."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from parallax_worlds import world
from worldline.align.flow_adjust import Matches
from worldline.systems.parallax.cameras import CameraConfig, Clip, solve_cameras
from worldline.systems.parallax.representation import grid_pixels
from worldline.systems.parallax.statistic import measure, zoom_curve, zooms

OFFSETS = (1, -1, 2, -2, 4, -4)
SIZE = (60, 90)
CENTRE = np.array([44.5, 29.5])


def panning(focal: np.ndarray, noise_px: float, turn_deg: float = 1.0, mover: bool = False) -> Matches:
    """Matches of a camera that turns by `turn_deg` per frame and has focal lengths [T]; a quarter may move."""
    frames, points = len(focal), grid_pixels(SIZE, 150).astype(np.float64)
    turns = [Rotation.from_euler("y", turn_deg * t, degrees=True).as_matrix() for t in range(frames)]
    target = np.arange(frames)[:, None] + np.array(OFFSETS)[None]
    target = np.where((target >= 0) & (target < frames), target, -1).astype(np.int32)
    goal = np.zeros((*target.shape, len(points), 2), np.float32)
    weight = np.zeros(goal.shape[:3], np.float32)
    rng = np.random.default_rng(0)
    for i, k in zip(*np.nonzero(target >= 0), strict=True):
        j = target[i, k]
        ray = np.c_[(points - CENTRE) / focal[i], np.ones(len(points))] @ (turns[j] @ turns[i].T).T
        goal[i, k] = ray[:, :2] / ray[:, 2:] * focal[j] + CENTRE + noise_px * rng.normal(size=points.shape)
        goal[i, k] += (mover & (points[:, :1] < SIZE[1] / 4)) * (j - i) * np.array([0.7, 0.2])
        weight[i, k] = ((goal[i, k] >= 0) & (goal[i, k] <= (SIZE[1] - 1, SIZE[0] - 1))).all(-1)
    return Matches(
        pixels=np.broadcast_to(points.astype(np.float32), (frames, *points.shape)).copy(),
        target=target,
        goal=goal,
        weight=weight,
    )


def clip_of(matches: Matches) -> Clip:
    intrinsics = np.tile(np.array([81.0, 81.0, *CENTRE]), (len(matches), 1))
    return Clip(matches=matches, offsets=OFFSETS, intrinsics=intrinsics, known_focal=False, longer_side=SIZE[1])


def test_the_zoom_curve_is_that_of_the_lens() -> None:
    focal = 80 * np.exp(0.4 * np.linspace(0, 1, 10) ** 2)
    matches = panning(focal, noise_px=0.05)
    intrinsics = np.tile(np.array([80.0, 80.0, *CENTRE]), (10, 1))
    fixed, free = measure(matches, intrinsics), measure(matches, intrinsics, zoom=True)
    curve = zoom_curve(free, OFFSETS)
    assert zooms(free, fixed, OFFSETS)
    assert np.abs(curve - (np.log(focal) - np.log(focal).mean())).max() < 0.01
    assert free.by_gap(OFFSETS)[1] < 0.15 < 0.5 < fixed.by_gap(OFFSETS)[4]


def test_a_camera_that_pans_and_zooms_stands() -> None:
    """Also with something moving on a quarter of the view; its focal lengths rise as the lens's do."""
    focal = 90 * np.exp(0.35 * np.linspace(0, 1, 10))
    found = solve_cameras(clip_of(panning(focal, noise_px=0.1, mover=True)), CameraConfig())
    assert found.kind == "rotation_only"
    assert np.abs(found.state.w2c[:, :3, 3]).max() == 0
    lens = found.state.intrinsics[:, 0]
    assert np.abs(np.log(lens / lens.mean()) - np.log(focal / focal.mean())).max() < 0.03
    assert found.report["zoom"] > 1.3 and "zooms" in " ".join(found.warnings)


def test_a_camera_that_travels_is_not_said_to_zoom() -> None:
    """Forward motion enlarges too, but near things more than far ones."""
    scene = world(frames=8, move=(0.0, 0.0, 0.15))
    matches = scene.matches(OFFSETS, noise_px=0.05)
    found = solve_cameras(clip_of(matches), CameraConfig())
    assert found.kind == "full"
    assert "zoom" not in found.report and found.report["unexplained"] < 0.3
