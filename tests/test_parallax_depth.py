"""Dense depth: triangulation, the smoother, planes through holes, fusion, movers, scene flow."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import diags, identity, kron
from scipy.sparse.linalg import spsolve

from parallax_worlds import World, camera_state, frames_of, true_r, uniform, world
from worldline.align.flow_adjust import R_MIN, FlowState
from worldline.systems.parallax.dense import (
    DenseConfig,
    dense_depth,
    probability,
    triangulate_frame,
)
from worldline.systems.parallax.fill import FillConfig, Guide, edge_weights, fill, smooth, smooth_rows
from worldline.systems.parallax.fuse import fuse
from worldline.systems.parallax.mask import MaskConfig, motion_score, moving_regions, vote
from worldline.systems.parallax.motion import MotionConfig, ground_contact, growth, scene_flow, steady
from worldline.systems.parallax.representation import (
    FLOW_LIMIT,
    FlowPairs,
    encode_flow,
    forward_backward_weight,
    grid_pixels,
)

OFFSETS = (1, -1, 2, -2)
FLAT = np.full((48, 64), 1.0, np.float32)


@pytest.fixture(scope="module")
def clip() -> tuple[World, FlowPairs, FlowState]:
    scene = world(frames=5, move=(0.15, 0.04, 0.05))
    return scene, scene.pairs(OFFSETS), camera_state(scene)


def test_triangulation_is_exact_up_to_the_fixed_point_of_flow(clip) -> None:
    scene, pairs, state = clip
    seen = triangulate_frame(pairs, state, 2, 0.75)
    inner = (slice(8, -8), slice(14, -14))
    assert np.abs(seen.r / true_r(scene, 2) - 1)[inner].max() < 0.02
    assert np.abs(seen.r / true_r(scene, 2) - 1)[inner].mean() < 0.002
    assert seen.support[inner].min() > 0.95 and seen.information[inner].min() > 0


def test_support_says_where_flows_do_not_agree_on_one_static_depth(clip) -> None:
    scene, pairs, state = clip
    rng = np.random.default_rng(0)
    flow = pairs.flow.copy()
    flow[2, :, 20:30, 30:50] += (128 * rng.normal(size=(len(OFFSETS), 1, 1, 2)) * 6).astype(np.int16)
    seen = triangulate_frame(FlowPairs(offsets=OFFSETS, flow=flow, weight=pairs.weight), state, 2, 0.75)
    assert seen.support[22:28, 33:47].max() < 0.7 < seen.support[40:50, 30:50].min()


def test_points_without_any_match_stay_at_the_floor_without_support(clip) -> None:
    _, pairs, state = clip
    silent = FlowPairs(offsets=OFFSETS, flow=pairs.flow, weight=np.zeros_like(pairs.weight))
    seen = triangulate_frame(silent, state, 2, 0.75)
    assert np.all(seen.r == np.float32(R_MIN)) and not seen.support.any() and not seen.information.any()


def test_one_smoother_pass_solves_its_sparse_system() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 40, 2)).astype(np.float32)
    right = rng.random((3, 40)).astype(np.float32)
    right[:, -1] = 0
    solved = values.copy()
    smooth_rows(solved, right, np.float32(7.0))
    for row in range(3):
        w = 7.0 * right[row, :-1].astype(np.float64)
        laplacian = diags([np.r_[w, 0] + np.r_[0, w], -w, -w], [0, 1, -1])
        exact = spsolve((identity(40) + laplacian).tocsc(), values[row].astype(np.float64))
        assert np.allclose(solved[row], exact, atol=1e-5)


def test_the_separable_smoother_is_near_the_sparse_solution_of_the_whole_image() -> None:
    height, width, strength = 24, 32, 5.0
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    values = (np.sin(x / 6) + np.cos(y / 5) + 0.3 * rng.normal(size=(height, width))).astype(np.float32)
    step = diags([-np.ones(width), np.ones(width - 1)], [0, 1], shape=(width - 1, width))
    down = diags([-np.ones(height), np.ones(height - 1)], [0, 1], shape=(height - 1, height))
    laplacian = kron(identity(height), step.T @ step) + kron(down.T @ down, identity(width))
    exact = spsolve((identity(height * width) + strength * laplacian).tocsc(), values.ravel()).reshape(height, width)
    found = smooth(values[..., None], uniform(height, width), strength)[..., 0]
    assert np.abs(found - exact).mean() < 0.25 * np.abs(values - exact).mean()
    assert found.mean() == pytest.approx(values.mean(), abs=1e-4)  # it only moves values around


def test_the_smoother_does_not_cross_edges() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 20:] = 255
    values = np.where(np.arange(40) < 20, 0.0, 1.0).astype(np.float32)[None].repeat(20, 0)[..., None]
    found = smooth(values, edge_weights(image, 0.06), 4000.0)[..., 0]
    assert found[:, :20].max() < 0.01 and found[:, 20:].min() > 0.99


def test_plane_in_plane_out_with_half_of_the_pixels_missing() -> None:
    y, x = np.mgrid[:48, :64]
    plane = (0.3 + 0.004 * x + 0.006 * y).astype(np.float32)
    rng = np.random.default_rng(0)
    known = rng.random(plane.shape) < 0.5
    noisy = np.where(known, plane, rng.random(plane.shape)).astype(np.float32)
    filled = fill(noisy, known.astype(np.float32), uniform(48, 64))
    error = np.abs(filled.value / plane - 1)
    assert error.max() < 0.03 and error.mean() < 0.006
    assert filled.confidence.min() > 0.9


def test_a_large_hole_is_closed_with_falling_confidence() -> None:
    y, x = np.mgrid[:48, :64]
    plane = (0.3 + 0.004 * x + 0.002 * y).astype(np.float32)
    known = ((x < 20) | (x > 50)).astype(np.float32)
    filled = fill(plane * known, known, uniform(48, 64), FillConfig(near=2.0))
    assert np.abs(filled.value / plane - 1).max() < 0.1
    assert filled.confidence[:, 35].max() < 0.5 * filled.confidence[:, 5].min()


def test_outliers_lose_against_their_neighbourhood() -> None:
    rng = np.random.default_rng(0)
    wrong = rng.random(FLAT.shape) < 0.15
    filled = fill(np.where(wrong, 3.0, FLAT).astype(np.float32), np.ones_like(FLAT), uniform(48, 64))
    assert np.abs(filled.value - 1).max() < 0.12 < np.mean(np.where(wrong, 3.0, 1.0)) - 1


def test_a_prior_gives_the_far_shape_and_parallax_the_scale() -> None:
    y, x = np.mgrid[:48, :64]
    bump = (1 + 0.5 * np.exp(-((x - 48.0) ** 2 + (y - 24.0) ** 2) / 60)).astype(np.float32)
    known = (x < 20).astype(np.float32)
    r, guide = (2 * bump * known).astype(np.float32), Guide(value=2.1 * bump)
    filled = fill(r, known, uniform(48, 64), FillConfig(near=2.0), guide)
    blind = fill(r, known, uniform(48, 64), FillConfig(near=2.0))
    error, without = (np.abs(np.log(f.value / (2 * bump)))[:, 40:56].mean() for f in (filled, blind))
    assert error < 0.6 * without


def test_fusion_takes_the_neighbours_word_where_a_frame_sees_nothing(clip) -> None:
    scene, pairs, state = clip
    r = np.stack([true_r(scene, t) for t in range(5)])
    c = np.full_like(r, 0.5)
    r[2, 20:30, 30:50], c[2, 20:30, 30:50] = 3.0, 0.0
    fused, trust = fuse(r, c, pairs, state, 2)
    truth = true_r(scene, 2)
    assert np.abs(fused / truth - 1)[22:28, 32:48].max() < 0.03 and trust[22:28, 32:48].min() > 0.2
    assert np.abs(fused / truth - 1)[5:-5, 10:-10].max() < 0.03


def test_confidence_is_a_probability_that_grows_with_support_and_precision() -> None:
    support = np.array([[0.0, 0.9, 0.99, 0.99]])
    precision = np.array([[50.0, 50.0, 50.0, 3.0]])
    p = probability(support, precision)[0]
    assert p[0] < p[1] < p[2] < 1 and p[3] < p[2] and p[0] < 0.2


# --- what moves -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving() -> tuple[World, FlowPairs, FlowState, np.ndarray]:
    scene = world(
        frames=6, move=(0.1, 0.02, 0.04), size=(72, 108), mover=(50.0, 36.0, 13.0), mover_step=(-0.08, 0.05, 0)
    )
    x, y = np.meshgrid(np.arange(108), np.arange(72))
    pixels = np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)
    mask = np.stack([scene.moves(t, pixels).reshape(72, 108) for t in range(6)])
    return scene, scene.pairs((1, -1, 2, -2, 4, -4)), camera_state(scene), mask


def test_the_mover_scores_and_the_static_world_does_not(moving) -> None:
    scene, pairs, state, mask = moving
    gray = frames_of(scene)
    config = MaskConfig()
    scores = np.stack([motion_score(gray, pairs, state, t, true_r(scene, t), config) for t in range(6)])
    import cv2

    for t in (2, 3):
        inside = cv2.erode(mask[t].astype(np.uint8), np.ones((5, 5))) > 0
        outside = cv2.dilate(mask[t].astype(np.uint8), np.ones((15, 15))) == 0
        outside[:6], outside[-6:], outside[:, :12], outside[:, -12:] = False, False, False, False
        assert np.median(scores[t][inside]) > 0.5 > 0.1 > np.percentile(scores[t][outside], 95)
    found = moving_regions(cv2.blur(vote(scores, pairs, 3), (3, 3)), config) > 0
    union = (found | mask[3])[6:-6, 12:-12].sum()
    assert (found & mask[3])[6:-6, 12:-12].sum() / union > 0.6


def test_failing_flow_on_a_white_wall_does_not_move(moving) -> None:
    """The flow says it moves, the images do not care: unsure, hence static."""
    scene, pairs, state, _ = moving
    gray = [np.full(scene.size, 200, np.uint8) for _ in range(6)]
    score = motion_score(gray, pairs, state, 3, true_r(scene, 3), MaskConfig())
    assert score.max() == 0


def test_small_specks_and_weak_regions_are_not_moving_things() -> None:
    score = np.zeros((100, 100), np.float32)
    score[10:12, 10:12] = 1.0  # too small
    score[30:50, 30:50] = 0.5  # never strong
    score[60:80, 60:80], score[60:80, 80:90] = 0.9, 0.5  # strong, and weak beside it
    labels = moving_regions(score, MaskConfig(smallest=0.002))
    assert labels.max() == 1 and labels[70, 85] == 1 and labels[40, 40] == 0 and labels[11, 11] == 0


def test_a_mover_gets_the_depth_of_the_ground_it_stands_on() -> None:
    y, x = np.mgrid[:60, :80]
    ground = (0.2 + 0.01 * y).astype(np.float32)
    labels = np.zeros((60, 80), np.int32)
    labels[20:41, 30:50] = 1
    placed = ground_contact(ground, labels, MotionConfig())
    assert np.allclose(placed[20:41, 30:50], 0.2 + 0.01 * 43, atol=0.002)
    assert np.array_equal(placed[labels == 0], ground[labels == 0])


def test_a_mover_whose_foot_is_outside_keeps_what_surrounds_it() -> None:
    ground = np.full((60, 80), 0.5, np.float32)
    labels = np.zeros((60, 80), np.int32)
    labels[30:, 20:60] = 1
    assert np.array_equal(ground_contact(ground, labels, MotionConfig()), ground)


def test_steadying_removes_flicker_of_movers_only(moving) -> None:
    scene, pairs, state, mask = moving
    rng = np.random.default_rng(0)
    flicker = np.exp(0.3 * rng.normal(size=6))
    truth = np.stack([true_r(scene, t) / np.where(mask[t], 0.7, 1) for t in range(6)]).astype(np.float32)
    r = np.where(mask, truth * flicker[:, None, None], truth).astype(np.float32)
    before = r.copy()
    steady(r, mask, pairs, state, rounds=4)
    assert np.array_equal(r[~mask], before[~mask])
    level = [np.log(r[t][mask[t]] / truth[t][mask[t]]).mean() for t in range(1, 5)]
    assert np.std(level) < 0.5 * np.std(np.log(flicker[1:5]))


def test_scene_flow_of_a_mover_is_its_step_and_of_the_world_zero(moving) -> None:
    scene, pairs, state, mask = moving
    r = np.stack([true_r(scene, t) for t in range(6)])
    for t in range(6):  # a flat thing at the depth of its centre
        centre = scene._mover_centre() + t * np.array(scene.mover_step)
        r[t][mask[t]] = 1 / (centre @ scene.w2c[t, 2, :3] + scene.w2c[t, 2, 3])
    flow, valid = scene_flow(r, mask, pairs, state, 2)
    assert not flow[~mask[2]].any() and valid[~mask[2]].all()
    step = np.array(scene.mover_step)
    inner = mask[2] & valid
    assert inner.sum() > 100
    error = np.median(flow[inner], axis=0) - step
    assert np.linalg.norm(error[:2]) < 0.25 * np.linalg.norm(step)  # across the rays, which image motion shows
    assert np.linalg.norm(error) < 0.6 * np.linalg.norm(step)  # along them only size and ground speak


def test_growth_of_an_approaching_region_and_not_of_a_shearing_one() -> None:
    y, x = np.mgrid[:60, :80].astype(np.float64)
    mask = np.zeros((9, 60, 80), bool)
    mask[:, 15:45, 20:60] = True
    offsets = (1, -1, 2, -2, 4, -4)
    for matrix, rate in ((1.02 * np.eye(2), 1.02), (np.array([[1.04, 0.0], [0.0, 1 / 1.04]]), 1.0)):
        stored = []
        for offset in offsets:
            change = np.linalg.matrix_power(np.linalg.inv(matrix) if offset < 0 else matrix, abs(offset))
            flow = np.stack([x - 40, y - 30], -1) @ (change - np.eye(2)).T
            stored.append(encode_flow(flow, np.ones((60, 80), np.float32)))
        flows, weights = (np.stack([np.stack(part)] * 9) for part in zip(*stored, strict=True))
        pairs = FlowPairs(offsets=offsets, flow=flows, weight=weights)
        r = np.broadcast_to((rate ** np.arange(9.0))[:, None, None], mask.shape).astype(np.float32)
        middle, end = (growth(r, mask, pairs, t, np.zeros((60, 80)))[30, 40] for t in (4, 0))
        assert 0.7 * np.log(rate) <= middle <= np.log(rate) + 0.003  # as far as the evidence goes, never beyond
        assert abs(end) <= abs(middle) + 1e-3  # less evidence, nearer to standing still
        assert not growth(r, mask, pairs, 4, np.zeros((60, 80)))[~mask[0]].any()


# --- the store of flows -----------------------------------------------------------------------------------------------


def test_flow_is_stored_to_a_256th_of_a_pixel_and_too_long_flow_is_refused() -> None:
    rng = np.random.default_rng(0)
    flow = rng.normal(size=(5, 6, 2)).astype(np.float32) * 30
    flow[0, 0] = FLOW_LIMIT + 5
    stored, weight = encode_flow(flow, np.ones((5, 6), np.float32))
    back = stored.astype(np.float32) / 128
    assert weight[0, 0] == 0 and np.all(weight.ravel()[1:] == 255)
    assert np.abs(back - flow).reshape(-1, 2)[1:].max() <= 1 / 256


def test_forward_backward_weight_falls_with_the_error_and_outside_of_the_frame() -> None:
    forward = np.zeros((20, 30, 2), np.float32)
    forward[..., 0] = 3.0
    backward = -forward
    weight = forward_backward_weight(forward, backward, 0.5, 0.0025)
    assert np.all(weight[:, :27] == 1) and np.all(weight[:, 27:] == 0)
    backward[:, 15:, 0] += 0.5
    backward[10:, 15:, 0] += 3.0
    weight = forward_backward_weight(forward, backward, 0.5, 0.0025)
    assert np.all((weight[:9, 13:26] > 0.2) & (weight[:9, 13:26] < 0.9)) and np.all(weight[11:, 13:26] == 0)


def test_grid_pixels_lie_inside_and_are_as_many_as_asked() -> None:
    points = grid_pixels((60, 90), 100)
    assert 80 <= len(points) <= 120 and points.min() >= 0 and (points <= (89, 59)).all()
    assert len(grid_pixels((2, 2), 100)) == 4


def test_dense_depth_of_a_clip_with_a_blind_patch(clip) -> None:
    scene, pairs, state = clip
    weight = pairs.weight.copy()
    weight[:, :, 20:35, 35:55] = 0
    rng = np.random.default_rng(0)
    rgb = [rng.integers(100, 130, (60, 90, 3)).astype(np.uint8) for _ in range(5)]
    gray = [frame[..., 0] for frame in rgb]
    found = dense_depth(rgb, gray, FlowPairs(offsets=OFFSETS, flow=pairs.flow, weight=weight), state, DenseConfig())
    error = np.abs(found.r[2] / true_r(scene, 2) - 1)
    assert np.median(error) < 0.02 and error.max() < 0.3
    assert found.confidence[2, 22:33, 38:52].mean() < found.confidence[2, 42:55, 20:70].mean()
    assert not found.moving.any()
    blind = dense_depth(rgb, gray, pairs, state, DenseConfig(), see_depth=False)
    assert np.all(blind.r == 1) and not blind.confidence.any()
