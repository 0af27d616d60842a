"""What the method cannot see, and that it says so: the failures of its specification (section 4), one by one.

Where not said otherwise the test is in this file; the others are in test_parallax_{cameras,depth,infer,prior,zoom}.py.

| failure | tests |
|---|---|
| static camera | cameras: test_a_static_camera_is_static, test_sensor_noise_on_a_static_camera_is_not_parallax |
|               | infer: test_a_static_camera_with_a_prior_has_the_priors_depth |
| pure rotation | cameras: test_pure_rotation_gives_rotations_focal_and_no_invented_translation |
| pan and zoom  | zoom: test_a_camera_that_pans_and_zooms_stands, test_a_camera_that_travels_is_not_said_to_zoom |
| no texture    | infer: test_no_texture_is_no_crash_and_no_confidence, test_independent_noise_is_no_camera_motion |
| white walls   | depth: test_failing_flow_on_a_white_wall_does_not_move |
|               | depth: test_dense_depth_of_a_clip_with_a_blind_patch |
|               | test_flow_that_agrees_by_chance_is_not_believed |
| a mover that fills the view | cameras: test_a_large_mover_does_not_capture_the_camera |
| movers without depth of their own | depth: test_a_mover_gets_the_depth_of_the_ground_it_stands_on |
| movers along their epipolar lines | test_a_lead_car_passes_as_static_unless_it_is_said_to_move |
| specks in the mask | depth: test_small_specks_and_weak_regions_are_not_moving_things |
| little information near the focus of expansion | test_ahead_of_a_forward_motion_little_is_known |
| straight drives hide the focal length | cameras: test_a_straight_drive_says_that_the_focal_length_is_not_observable |
|               | prior: test_a_focal_length_that_is_hardly_seen_stays_near_what_cameras_have |
"""

from __future__ import annotations

import numpy as np

from parallax_worlds import camera_state, frames_of, true_r, world
from worldline.systems.parallax.dense import DenseConfig, dense_depth, triangulate_frame, trust_in
from worldline.systems.parallax.triangulate import Triangulated

OFFSETS = (1, -1, 2, -2)


def test_ahead_of_a_forward_motion_little_is_known() -> None:
    """Where the camera heads nothing moves: information is lowest there, and depth comes from around."""
    scene = world(frames=5, move=(0.0, 0.0, 0.15), turn_deg=(0, 0, 0))
    pairs, state = scene.pairs(OFFSETS), camera_state(scene)
    seen = triangulate_frame(pairs, state, 2, 0.75)
    height, width = scene.size
    ahead = np.s_[height // 2 - 3 : height // 2 + 3, width // 2 - 4 : width // 2 + 4]
    assert np.median(seen.information[ahead]) < 0.05 * np.median(seen.information)
    gray = frames_of(scene)
    rgb = [np.repeat(frame[..., None], 3, -1) for frame in gray]
    dense = dense_depth(rgb, gray, pairs, state)
    assert np.median(np.abs(dense.r[2][ahead] / true_r(scene, 2)[ahead] - 1)) < 0.15
    assert np.median(dense.confidence[2][ahead]) < np.median(dense.confidence[2])


def test_a_lead_car_passes_as_static_unless_it_is_said_to_move() -> None:
    """At half the camera's speed along its epipolar lines a thing looks twice as far away: no geometric cue tells."""
    scene = world(
        frames=6, move=(0.0, 0.0, 0.12), turn_deg=(0, 0, 0), mover=(62.0, 40.0, 9.0), mover_step=(0.0, 0.0, 0.06)
    )
    pairs, state = scene.pairs(OFFSETS), camera_state(scene)
    gray = frames_of(scene)
    rgb = [np.repeat(frame[..., None], 3, -1) for frame in gray]
    y, x = np.mgrid[: scene.size[0], : scene.size[1]]
    pixels = np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)
    car = np.stack([scene.moves(t, pixels).reshape(scene.size) for t in range(scene.frames)])
    truth = np.stack([true_r(scene, t) / np.where(car[t], 0.7, 1) for t in range(scene.frames)])
    fooled = dense_depth(rgb, gray, pairs, state)
    told = dense_depth(rgb, gray, pairs, state, prior=(2 * truth).astype(np.float32), known_moving=car)
    fooled_by, told_by = (np.median(np.abs(np.log(d.r[2:4] / truth[2:4]))[car[2:4]]) for d in (fooled, told))
    assert fooled.moving[2:4][car[2:4]].mean() < 0.5 and fooled_by > 0.3
    assert told.moving[2:4][car[2:4]].all() and told_by < 0.5 * fooled_by


def test_flow_that_agrees_by_chance_is_not_believed() -> None:
    """Specks of support among failing flow count less than the same support in company."""
    alone, together = np.zeros((40, 40), np.float32), np.zeros((40, 40), np.float32)
    alone[20, 20], together[10:30, 10:30] = 1, 1
    texture, r = np.full((40, 40), 100, np.float32), np.ones((40, 40), np.float32)
    speck, patch = (
        trust_in(Triangulated(r=r, information=100 * found + 1e-3, support=found), texture, DenseConfig())[20, 20]
        for found in (alone, together)
    )
    assert speck < 0.3 * patch
