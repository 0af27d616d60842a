"""What cameras can be known: statistic, starts, growing, focal; and every way it can be impossible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from parallax_worlds import World, path, pose_errors, world
from worldline.align.flow_adjust import Matches
from worldline.systems.parallax.cameras import CameraConfig, Clip, solve_cameras
from worldline.systems.parallax.epipolar import search_focal
from worldline.systems.parallax.grow import interpolate_missing
from worldline.systems.parallax.observability import CameraSolution
from worldline.systems.parallax.resect import resect
from worldline.systems.parallax.statistic import classify, failed_gaps, measure, rays

OFFSETS = (1, -1, 2, -2, 4, -4)
BIG = (120, 180)


def solve(scene: World, matches: Matches | None = None, *, known_focal: bool = True, **changes) -> CameraSolution:
    clip = Clip(
        matches=scene.matches(OFFSETS) if matches is None else matches,
        offsets=OFFSETS,
        intrinsics=scene.intrinsics,
        known_focal=known_focal,
        longer_side=max(scene.size),
        **changes,
    )
    return solve_cameras(clip, CameraConfig(focal_range=(0.6, 1.8), focal_steps=7))


def noisy(frames: int, noise_px: float, **changes) -> tuple[World, Matches]:
    scene = world(frames=frames, size=BIG, focal=160.0, **changes)
    return scene, scene.matches(OFFSETS, noise_px=noise_px)


def test_cameras_of_a_whole_clip_from_nothing() -> None:
    scene, matches = noisy(12, 0.1)
    solution = solve(scene, matches)
    angle, centre = pose_errors(solution.state.w2c, scene.w2c)
    assert solution.kind == "full" and solution.focal == "given" and solution.registered.all()
    assert angle < 2e-3 and centre < 5e-3
    assert not solution.warnings and solution.report["unexplained"] < 0.2


def test_the_focal_length_is_found_where_the_motion_shows_it() -> None:
    scene, matches = noisy(12, 0.05, turn_deg=(1.0, -3.0, 0.5))
    solution = solve(scene, matches, known_focal=False)
    assert solution.focal == "estimated"
    assert solution.report["focal_px"] == pytest.approx(160, rel=0.03)


def test_the_epipolar_search_has_its_minimum_at_the_true_focal_length() -> None:
    scene, matches = noisy(10, 0.05, turn_deg=(1.0, -3.0, 0.5))
    factors = np.geomspace(0.5, 2, 9)
    curve = search_focal(matches, measure(matches, scene.intrinsics), scene.intrinsics, factors)
    assert factors[curve.argmin()] == pytest.approx(1.0)


def test_a_straight_drive_says_that_the_focal_length_is_not_observable() -> None:
    scene, matches = noisy(10, 0.1, move=(0.0, 0.0, 0.12), turn_deg=(0, 0, 0))
    solution = solve(scene, matches, known_focal=False)
    assert solution.focal == "not_observable" and solution.report["focal_px"] is None
    assert any("focal length cannot be seen" in warning for warning in solution.warnings)
    focal = solution.state.intrinsics[0, 0] / max(BIG)
    assert 0.6 < focal < 1.3  # what is used is a usual one
    _, centre = pose_errors(solution.state.w2c, scene.w2c)
    assert centre < 0.02  # the path does not care


def rotating(frames: int = 8, noise_px: float = 0.07) -> tuple[World, Matches]:
    return noisy(frames, noise_px, move=(0.0, 0.0, 0.0), turn_deg=(0.5, 1.5, 0.2))


def test_the_parallax_of_a_rotation_is_the_noise() -> None:
    scene, matches = rotating()
    parallax = measure(matches, scene.intrinsics)
    assert np.nanmax(parallax.parallax_px) < 0.12 and np.nanmax(parallax.motion_px) > 10
    assert classify(parallax, OFFSETS, 0.25) == "rotation_only"
    forward = parallax.rotation[2, OFFSETS.index(2)]
    truth = scene.w2c[4, :3, :3] @ scene.w2c[2, :3, :3].T
    assert np.linalg.norm(Rotation.from_matrix(forward @ truth.T).as_rotvec()) < 1e-3


@pytest.mark.parametrize("known_focal", [True, False])
def test_pure_rotation_gives_rotations_focal_and_no_invented_translation(known_focal: bool) -> None:
    scene, matches = rotating()
    solution = solve(scene, matches, known_focal=known_focal)
    assert solution.kind == "rotation_only"
    angle, _ = pose_errors(solution.state.w2c, scene.w2c)
    assert angle < 3e-3 and np.all(solution.state.w2c[:, :3, 3] == 0)
    assert solution.state.intrinsics[0, 0] == pytest.approx(160, rel=0.03)
    assert any("depth cannot be seen" in warning for warning in solution.warnings)


def test_flow_that_fails_at_the_longest_gap_alone_is_not_parallax() -> None:
    """Patches of the picture jump, each as a whole, between frames far apart, as repeated texture does."""
    scene, matches = rotating(10)
    for i, k in zip(*np.nonzero(matches.target >= 0), strict=True):
        if abs(OFFSETS[k]) == 4:
            stripe = np.sin(matches.pixels[i][:, :1] / 10) * np.sin(matches.pixels[i][:, 1:] / 10)
            matches.goal[i, k] += 9.0 * np.sign(OFFSETS[k]) * np.sign(stripe).astype(np.float32)
    assert failed_gaps(measure(matches, scene.intrinsics), OFFSETS, 0.25) == [4]
    solution = solve(scene, matches)
    assert solution.kind == "rotation_only" and solution.report["failed_gaps"] == [4]
    assert "4" not in solution.report["parallax_px"]
    angle, _ = pose_errors(solution.state.w2c, scene.w2c)
    assert angle < 3e-3


def test_parallax_that_grows_with_the_gap_is_believed() -> None:
    scene, matches = noisy(12, 0.1)
    assert failed_gaps(measure(matches, scene.intrinsics), OFFSETS, 0.25) == []


def test_a_static_camera_is_static() -> None:
    scene, matches = noisy(6, 0.05, move=(0.0, 0.0, 0.0), turn_deg=(0, 0, 0))
    solution = solve(scene, matches, known_focal=False)
    assert solution.kind == "static" and solution.focal == "not_observable"
    assert np.allclose(solution.state.w2c, np.eye(4))


def test_sensor_noise_on_a_static_camera_is_not_parallax() -> None:
    """Each frame wobbles by itself, as sensor noise makes it: consistent between flows, and above the floor."""
    scene, matches = noisy(8, 0.0, move=(0.0, 0.0, 0.0), turn_deg=(0, 0, 0))
    rng = np.random.default_rng(0)
    wobble = 0.35 * rng.normal(size=matches.pixels.shape)
    for i, k in zip(*np.nonzero(matches.target >= 0), strict=True):
        matches.goal[i, k] += (wobble[matches.target[i, k]] - wobble[i]).astype(np.float32)
    assert classify(measure(matches, scene.intrinsics), OFFSETS, 0.25) == "full"  # the floor alone would be fooled
    solution = solve(scene, matches)
    assert solution.kind == "static"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_large_mover_does_not_capture_the_camera(seed: int) -> None:
    """It covers up to half of the view for a third of the clip, moves rigidly, and has the larger parallax."""
    rng = np.random.default_rng(seed)
    scene, matches = noisy(18, 0.1, move=(0.05, 0.01, 0.03), turn_deg=(0.2, -0.3, 0.1))
    slide = np.array([0.35, 0.05 * (-1) ** seed, -0.05])
    for i, k in zip(*np.nonzero(matches.target >= 0), strict=True):
        j = int(matches.target[i, k])
        if not (7 <= i <= 12 and 6 <= j <= 13):
            continue
        pixels = matches.pixels[i].astype(np.float64)
        on = pixels[:, 0] < 90
        depth = 2.2 + 0.3 * np.sin(pixels[on, 1] / 20)
        ray = np.c_[(pixels[on] - scene.K[2:]) / scene.K[:2], np.ones(on.sum())]
        world_points = (ray * depth[:, None] - scene.w2c[i, :3, 3]) @ scene.w2c[i, :3, :3] + (j - i) * slide
        goal = scene.project(j, world_points) + 0.1 * rng.normal(size=(on.sum(), 2))
        matches.goal[i, k][on] = goal
        matches.weight[i, k][on] = scene.inside(goal)
    solution = solve(scene, matches)
    angle, centre = pose_errors(solution.state.w2c, scene.w2c)
    assert solution.registered.all() and angle < 0.01 and centre < 0.02


def test_frames_without_flow_are_interpolated_and_named() -> None:
    scene, matches = noisy(12, 0.05)
    blurred = (np.arange(12) == 6)[:, None, None] | (matches.target == 6)[..., None]
    matches = replace(matches, weight=np.where(blurred, 0, matches.weight).astype(np.float32))
    solution = solve(scene, matches)
    assert list(np.flatnonzero(~solution.registered)) == [6]
    assert any(warning.startswith("1 of 12 cameras") for warning in solution.warnings)
    _, centre = pose_errors(solution.state.w2c, scene.w2c)
    assert centre < 0.05 and np.isfinite(solution.state.w2c).all()


def test_interpolation_is_halfway() -> None:
    scene = world(frames=3)
    state = scene.state(scene.matches(OFFSETS, count=10))
    w2c = np.stack([np.eye(4), np.full((4, 4), np.nan), np.linalg.inv(np.eye(4) + np.eye(4)[:, [3]] * 0)])
    w2c[2, :3, 3] = (-2, 0, 0)
    filled = interpolate_missing(replace(state, w2c=w2c), np.array([True, False, True]))
    assert np.allclose(filled.w2c[1, :3, 3], (-1, 0, 0))


def test_nothing_to_hold_on_to_gives_an_honest_nothing() -> None:
    scene = world(frames=6)
    matches = scene.matches(OFFSETS)
    rng = np.random.default_rng(0)
    goal = matches.pixels[:, None] + rng.normal(size=matches.goal.shape).astype(np.float32) * 5
    solution = solve(scene, replace(matches, goal=goal.astype(np.float32)))
    assert solution.kind != "full" and np.isfinite(solution.state.w2c).all()
    empty = solve(scene, replace(matches, weight=np.zeros_like(matches.weight)), known_focal=False)
    assert empty.kind == "static" and empty.focal == "not_observable"


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_very_short_clips(frames: int) -> None:
    scene = world(frames=frames, size=BIG, focal=160.0, move=(0.3, 0.05, 0.0))
    offsets = tuple(offset for offset in OFFSETS if abs(offset) < frames)
    clip = Clip(
        matches=scene.matches(offsets), offsets=offsets, intrinsics=scene.intrinsics, known_focal=True, longer_side=180
    )
    solution = solve_cameras(clip)
    assert len(solution.state.w2c) == frames and np.isfinite(solution.state.w2c).all()
    assert solution.kind == ("static" if frames == 1 else "full")
    if frames > 1:
        angle, centre = pose_errors(solution.state.w2c, scene.w2c)
        assert angle < 1e-3 and centre < 0.01


def test_given_poses_are_kept() -> None:
    scene, matches = noisy(8, 0.05, turn_deg=(1.0, -3.0, 0.5))
    solution = solve(scene, matches, known_focal=False, poses=scene.w2c)
    assert solution.posed and np.array_equal(solution.state.w2c, scene.w2c)
    assert solution.state.intrinsics[0, 0] == pytest.approx(160, rel=0.02)


def test_given_poses_that_cannot_be_seen_are_said_to_be_noise() -> None:
    scene, matches = noisy(8, 0.3, move=(0.002, 0.0, 0.0), turn_deg=(0.0, -3.0, 0.5))
    solution = solve(scene, matches, poses=scene.w2c)
    assert solution.kind == "full" and solution.noise and solution.report["unexplained"] > 0.4
    assert any("mostly noise" in warning for warning in solution.warnings)
    scene, matches = noisy(8, 0.3, turn_deg=(0.0, -3.0, 0.5))
    seen = solve(scene, matches, poses=scene.w2c)
    assert not seen.noise and not seen.warnings


def test_resection_with_half_of_the_points_wrong() -> None:
    scene = world(frames=2, size=BIG, focal=160.0)
    pixels = scene.matches(OFFSETS).pixels[0].astype(np.float64)
    points = np.c_[(pixels - scene.K[2:]) / scene.K[:2], np.ones(len(pixels))] * scene.depth(0, pixels)[:, None]
    image = scene.project(1, points)
    rng = np.random.default_rng(0)
    wrong = rng.random(len(image)) < 0.5
    image[wrong] += rng.normal(size=image[wrong].shape) * 30
    pose = resect(points, image, np.ones(len(image)), scene.K, [np.eye(4)])
    assert pose is not None and np.allclose(pose, scene.w2c[1], atol=2e-3)
    assert resect(points[:5], image[:5], np.ones(5), scene.K, [np.eye(4)]) is None


def test_rays_are_unit_and_through_their_pixels() -> None:
    K = np.array([[100.0, 120.0, 40.0, 30.0]])
    found = rays(np.array([[[40.0, 30.0], [140.0, 30.0]]]), K)
    assert np.allclose(found[0], [[0, 0, 1], [np.sqrt(0.5), 0, np.sqrt(0.5)]])
    assert np.allclose(path(3, (0, 0, 0), (0, 0, 0)), np.eye(4))
