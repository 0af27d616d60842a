"""Parallax that contradicts a prior: wrong and loosely held cameras give way, firm ones do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from parallax_worlds import camera_state, frames_of, true_r, world
from worldline.align.flow_adjust import FlowProblem, FlowState
from worldline.systems.parallax.belief import weight_of_prior
from worldline.systems.parallax.dense import DenseDepth, dense_depth
from worldline.systems.parallax.observability import CameraSolution
from worldline.systems.parallax.uncertainty import LARGE, camera_deviation, depth_deviation

OFFSETS = (1, -1, 2, -2)
FIRM, LOOSE = 0.03, 0.4


def test_only_loose_cameras_that_share_nothing_with_the_prior_are_overruled() -> None:
    assert weight_of_prior(0.0, LOOSE) > 0.9
    assert weight_of_prior(-0.5, FIRM) < 0.05  # then it is the prior that is junk
    assert weight_of_prior(0.0, 0.0) < 0.01
    assert weight_of_prior(0.8, LOOSE) < 0.01  # they agree: nothing to decide


def test_the_prior_gains_with_doubt_about_the_cameras_and_loses_with_agreement() -> None:
    by_doubt = [weight_of_prior(0.1, s) for s in (0.0, 0.05, 0.15, 0.5, LARGE)]
    by_agreement = [weight_of_prior(rho, LOOSE) for rho in (0.9, 0.5, 0.3, 0.1, 0.0)]
    for weights in (by_doubt, by_agreement):
        assert np.all(np.diff(weights) > 0) and weights[-1] > 2 * weights[0] and 0 <= weights[0] <= weights[-1] <= 1


def deviation(move: tuple[float, float, float], noise_px: float = 0.2) -> float:
    scene = world(frames=6, move=move)
    matches = scene.matches(OFFSETS, noise_px=noise_px)
    problem = FlowProblem(matches=matches, sigma_px=0.75, free_focal=False, fixed=np.zeros(6, bool))
    return depth_deviation(problem, scene.state(matches), 0.4)


def test_depth_is_looser_with_less_parallax_and_more_noise() -> None:
    wide, narrow = ((s * 0.12, s * 0.03, s * 0.05) for s in (1.0, 0.1))
    assert deviation(wide) < 0.06
    assert deviation(narrow) > 5 * deviation(wide)
    assert deviation(wide, 0.4) == pytest.approx(2 * deviation(wide, 0.2), rel=0.5)


def test_the_deviation_of_the_cameras_includes_what_is_said_of_the_focal_length() -> None:
    scene = world(frames=6)
    matches = scene.matches(OFFSETS, noise_px=0.2)
    found = CameraSolution(
        state=scene.state(matches), kind="full", focal="not_observable", registered=np.ones(6, bool),
        report={"focal_deviation": 0.5},
    )  # fmt: skip
    assert 0.5 < camera_deviation(matches, found, False, 0.75, 0.4) < 0.6
    assert camera_deviation(matches, found, True, 0.75, 0.4) < 0.06
    assert camera_deviation(matches, replace(found, report={"focal_deviation": None}), False, 0.75, 0.4) == LARGE
    assert camera_deviation(matches, replace(found, posed=True), False, 0.75, 0.4) == 0
    assert camera_deviation(matches, replace(found, kind="rotation_only"), False, 0.75, 0.4) == 0


def test_too_few_points_leave_everything_open() -> None:
    scene = world(frames=6)
    matches = scene.matches(OFFSETS, count=150)
    matches = replace(matches, weight=0 * matches.weight)
    problem = FlowProblem(matches=matches, sigma_px=0.75, free_focal=False, fixed=np.zeros(6, bool))
    assert depth_deviation(problem, scene.state(matches), 0.4) == np.inf


SCENE = world(frames=6, move=(0.1, 0.0, 0.0), turn_deg=(0, 0, 0), size=(48, 72), focal=64.0)
TRUTH = np.stack([true_r(SCENE, t) for t in range(6)])


def log_error(found: DenseDepth) -> float:
    """Mean |log depth error| at the best scale."""
    error = np.log(found.r / TRUTH)
    return float(np.abs(error - np.median(error)).mean())


def run(state: FlowState, prior: np.ndarray | None, loose: float) -> DenseDepth:
    gray = frames_of(SCENE)
    rgb = [np.repeat(frame[..., None], 3, -1) for frame in gray]
    return dense_depth(rgb, gray, SCENE.pairs(OFFSETS), state, prior=prior, camera_deviation=loose)


def reversed_cameras() -> FlowState:
    """Cameras that move the other way and turn instead, with a focal length 40 % too long: near is far, far is near."""
    state, mean = camera_state(SCENE), float(np.median(TRUTH))
    w2c, intrinsics = state.w2c.copy(), state.intrinsics * [1.4, 1.4, 1, 1]
    for t, (x, y, _) in enumerate(state.w2c[:, :3, 3]):
        w2c[t, :3, :3] = Rotation.from_euler("xy", [-2 * mean * y / 1.4, 2 * mean * x / 1.4]).as_matrix()
        w2c[t, :3, 3] *= -1
    return replace(state, w2c=w2c, intrinsics=intrinsics)


def test_wrong_cameras_that_may_be_wrong_give_way_to_a_good_prior() -> None:
    good = (TRUTH * np.exp(0.1 * np.sin(np.arange(72) / 9.0)) * np.array([1, 3, 0.5, 2, 1, 4])[:, None, None]).astype(
        np.float32
    )
    alone, loose, firm = (run(reversed_cameras(), p, s) for p, s in ((None, LOOSE), (good, LOOSE), (good, FIRM)))
    assert loose.overruled > 0.4 and log_error(loose) < 0.7 * log_error(alone)
    assert firm.overruled < 0.05 and log_error(firm) > log_error(loose)
    assert loose.confidence.mean() < 0.5 * alone.confidence.mean()


def test_a_bad_prior_does_not_win_against_parallax_that_is_well_observed() -> None:
    bad = np.exp(0.6 * np.sin(np.mgrid[:6, :48, :72][1] / 4.0)).astype(np.float32)
    alone, both = run(camera_state(SCENE), None, FIRM), run(camera_state(SCENE), bad, FIRM)
    assert both.overruled < 0.05 and log_error(both) < 1.1 * log_error(alone) + 0.005
