"""Reconstructions of parts of a clip are joined where each is right, and tell where the scale is in doubt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from parallax_worlds import World, pose_errors, world
from worldline.align.flow_adjust import FlowState, Matches, host_costs
from worldline.systems.parallax.cameras import CameraConfig, Clip, solve_cameras, to_first_camera
from worldline.systems.parallax.grow import Grown, extend
from worldline.systems.parallax.pieces import (
    Piece,
    cheapest_path,
    joined,
    piece_costs,
    piece_frames,
    retied,
    scale_doubt,
    window,
)

OFFSETS = (1, -1, 2, -2)
FRAMES = 24


@pytest.fixture(scope="module")
def scene() -> World:
    return world(frames=FRAMES, size=(60, 90), focal=80.0)


@pytest.fixture(scope="module")
def matches(scene: World) -> Matches:
    return scene.matches(OFFSETS, count=60)


def piece(scene: World, matches: Matches, first: int, last: int, wrong: slice, seed: int) -> Piece:
    """The truth about some frames, in another frame of reference; `wrong` ones are turned, moved and out of scale."""
    rng = np.random.default_rng(seed)
    state = scene.state(matches)
    w2c, r = state.w2c[first:last].copy(), state.r[first:last].copy()
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(0.3 * rng.normal(size=3)).as_matrix()
    turn[:3, 3] = rng.normal(size=3)
    bad = slice(wrong.start - first, wrong.stop - first)
    w2c[bad, :3, 3] = 2.5 * w2c[bad, :3, 3] + 0.2 * rng.normal(size=(wrong.stop - wrong.start, 3))
    r[bad] /= 2.5
    part = replace(state, w2c=w2c, r=r, intrinsics=state.intrinsics[first:last], log_scale=np.zeros(last - first))
    scaled = part.rescaled(float(np.exp(rng.normal())))
    return Piece(first=first, state=replace(scaled, w2c=scaled.w2c @ turn), registered=np.ones(last - first, bool))


def test_the_path_changes_pieces_where_that_pays() -> None:
    costs = np.array([[1.0, 1, 1, 9, 9, 9], [9, 9, 9, 1, 1, 1], [2, 2, 2, 2, 2, 2]])
    assert list(cheapest_path(costs, 1.0)) == [0, 0, 0, 1, 1, 1]
    assert list(cheapest_path(costs, 7.0)) == [2] * 6  # one change saves six
    assert list(cheapest_path(costs[:1], 0.0)) == [0] * 6


def test_pieces_that_are_wrong_in_different_places_make_one_that_is_right(scene: World, matches: Matches) -> None:
    left = piece(scene, matches, 0, 18, slice(14, 18), 1)
    right = piece(scene, matches, 6, FRAMES, slice(6, 10), 2)
    grown = joined(matches, scene.intrinsics, [left, right], 0.75)
    assert grown.registered.all()
    assert host_costs(matches, grown.state, 0.75).max() < 1e-6
    angle, centre = pose_errors(to_first_camera(grown.state).w2c, scene.w2c)
    assert angle < 1e-6 and centre < 1e-6


def test_frames_that_no_piece_has_are_not_registered(scene: World, matches: Matches) -> None:
    left = piece(scene, matches, 0, 16, slice(0, 0), 1)
    left.registered[12:] = False
    grown = joined(matches, scene.intrinsics, [left], 0.75)
    assert list(np.flatnonzero(grown.registered)) == list(range(12))


def test_pieces_that_never_meet_leave_the_later_one_to_be_found_again(scene: World, matches: Matches) -> None:
    left = piece(scene, matches, 0, 12, slice(0, 0), 1)
    right = piece(scene, matches, 12, FRAMES, slice(12, 12), 2)
    grown = joined(matches, scene.intrinsics, [left, right], 0.75)
    assert list(np.flatnonzero(grown.registered)) == list(range(12))
    whole = extend(matches, grown, 1.5)
    assert whole.registered.all() and pose_errors(to_first_camera(whole.state).w2c, scene.w2c)[1] < 1e-3


def test_matches_with_frames_that_a_piece_does_not_have_count_as_failed(scene: World, matches: Matches) -> None:
    part = piece(scene, matches, 4, 12, slice(4, 4), 1)
    costs = piece_costs(matches, [part], 0.75)[0]
    failed = 0.75**2 / 2 * np.where(matches.target >= 0, matches.weight.sum(-1), 0).sum(1)
    assert np.allclose(costs[:4], failed[:4]) and np.allclose(costs[12:], failed[12:])
    assert costs[6:10].max() < 1e-6 < costs[4] < failed[4]


def broken(scene: World, matches: Matches, at: int) -> tuple[Matches, FlowState]:
    """Matches of which none crosses from before frame `at` to after it, and a state three times as large after it."""
    early = np.arange(FRAMES) < at
    crosses = (matches.target >= 0) & (early[:, None] != early[matches.target])
    alone = replace(matches, weight=np.where(crosses[..., None], 0, matches.weight).astype(np.float32))
    state = scene.state(matches)
    pivot = np.linalg.inv(state.w2c[at])
    w2c, r = state.w2c @ pivot, state.r.copy()
    w2c[at:, :3, 3] *= 3
    r[at:] /= 3
    return alone, replace(state, w2c=w2c @ np.linalg.inv(pivot), r=r)


def test_rivals_that_differ_in_scale_put_it_in_doubt_where_they_do(scene: World, matches: Matches) -> None:
    alone, other = broken(scene, matches, 10)
    true = Piece(first=0, state=scene.state(matches), registered=np.ones(FRAMES, bool))
    false = replace(true, state=other)
    doubt = scale_doubt(alone, [true, false], 0.75)
    assert np.exp(doubt[9]) == pytest.approx(3.0, rel=0.01) and np.delete(doubt, 9).max() < 1e-6
    assert scale_doubt(alone, [true], 0.75).max() == 0
    assert scale_doubt(matches, [true, false], 0.75).max() < 1e-6  # here matches tell which one is wrong


def test_a_scale_that_matches_do_not_tell_is_one_at_which_depth_does_not_jump(scene: World, matches: Matches) -> None:
    alone, other = broken(scene, matches, 10)
    doubt = np.zeros(FRAMES - 1)
    doubt[9] = np.log(3)
    mended = retied(alone, Grown(state=other, registered=np.ones(FRAMES, bool), doubt=doubt), 1.5)
    before, after, truth = (
        np.log(np.median(state.r[10]) / np.median(state.r[9])) for state in (other, mended.state, scene.state(matches))
    )
    assert abs(before - truth) > 1 and abs(after - truth) < 0.15


def test_a_clip_is_covered_as_often_by_pieces_as_by_starts() -> None:
    assert piece_frames(16, 4) == (4, 16)
    for count in (25, 60, 100, 1000):
        pieces, length = piece_frames(count, 4)
        assert length <= 50 and pieces * length == pytest.approx(4 * count, rel=0.05)
        assert window(0, length, count) == slice(0, length) and window(count - 1, length, count).stop == count


def test_a_clip_longer_than_its_pieces_comes_out_whole() -> None:
    scene = world(frames=32, size=(60, 90), focal=80.0, move=(0.06, 0.01, 0.03), turn_deg=(0.2, -0.6, 0.1))
    clip = Clip(
        matches=scene.matches(OFFSETS, noise_px=0.02),
        offsets=OFFSETS,
        intrinsics=scene.intrinsics,
        known_focal=True,
        longer_side=90,
    )
    solution = solve_cameras(clip, CameraConfig())
    angle, centre = pose_errors(solution.state.w2c, scene.w2c)
    assert solution.registered.all() and angle < 2e-3 and centre < 5e-3
    assert "scale_doubt" not in solution.report
