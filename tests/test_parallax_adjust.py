"""Flow bundle adjustment: derivatives, exactness, banded against dense, focal observability, depth prior."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from parallax_worlds import pose_errors, world
from worldline.align.banded import solve_banded
from worldline.align.flow_adjust import (
    BLOCK,
    POSE,
    DepthPrior,
    FlowProblem,
    FlowState,
    adjust,
    focal_variance,
    reprojection_errors,
)
from worldline.align.schur import Normal, solve_step

OFFSETS = (1, -1, 2, -2, 4, -4)


def problem_and_state(**changes) -> tuple[FlowProblem, FlowState]:
    scene = world(frames=5)
    matches = scene.matches(OFFSETS, count=24, noise_px=0.3)
    fixed = np.arange(5) == 0
    return FlowProblem(matches=matches, sigma_px=2.0, free_focal=True, fixed=fixed, **changes), scene.state(matches)


def perturbed(state: FlowState, size: float, seed: int = 0) -> FlowState:
    rng = np.random.default_rng(seed)
    problem, _ = problem_and_state()
    dx = size * rng.normal(size=POSE * len(state.w2c) + 1)
    dx[:POSE] = 0
    dd = [torch.from_numpy(size * rng.normal(size=state.r.shape))]
    return problem.retract(state, torch.from_numpy(dx), dd)


def gradient(problem: FlowProblem, state: FlowState) -> tuple[np.ndarray, np.ndarray]:
    """Of the cost, with respect to the camera vector and to every inverse depth."""
    g, b = np.zeros(problem.layout.size), []
    for normal in problem.linearize(state).parts():
        for block in normal.cameras:
            columns = block.columns.numpy()
            np.add.at(g, columns[columns >= 0], block.g.numpy()[columns >= 0])
        b += [block.b.numpy() for block in normal.points]
    return g, np.concatenate(b)


@pytest.mark.parametrize("with_priors", [False, True])
def test_gradients_against_finite_differences(with_priors: bool) -> None:
    problem, truth = problem_and_state()
    if with_priors:
        rng = np.random.default_rng(1)
        prior = DepthPrior(r=truth.r * np.exp(0.2 * rng.normal(size=truth.r.shape)), weight=np.full(truth.r.shape, 3.0))
        problem = replace(problem, prior=prior, focal_prior=(60.0, 7.0))
    state = perturbed(truth, 0.01)
    g, b = gradient(problem, state)
    step, size = 1e-6, problem.layout.size
    still = [torch.zeros(state.r.shape, dtype=torch.float64)]
    for column in range(POSE, size):
        dx = torch.zeros(size, dtype=torch.float64)
        dx[column] = step
        up, down = (problem.cost(problem.retract(state, sign * dx, still)) for sign in (1, -1))
        assert g[column] == pytest.approx((up - down) / (2 * step), rel=2e-4, abs=2e-4)
    for t, n in ((0, 3), (2, 7), (4, 20)):
        dd = torch.zeros(state.r.shape, dtype=torch.float64)
        dd[t, n] = step
        up, down = (
            problem.cost(problem.retract(state, torch.zeros(size, dtype=torch.float64), [sign * dd]))
            for sign in (1, -1)
        )
        assert b[t, n] == pytest.approx((up - down) / (2 * step), rel=2e-4, abs=2e-4)


def test_hessian_is_that_of_the_linearised_residuals() -> None:
    """At zero residual the Gauss-Newton matrix is the cost's second derivative."""
    scene = world(frames=4)
    matches = scene.matches(OFFSETS, count=12)
    problem = FlowProblem(matches=matches, sigma_px=5.0, free_focal=True, fixed=np.arange(4) == 0)
    state = scene.state(matches)
    (normal,) = problem.linearize(state).parts()
    H = np.zeros((problem.layout.size,) * 2)
    for block in normal.cameras:
        for columns, local in zip(block.columns.numpy(), block.H.numpy(), strict=True):
            used = columns >= 0
            H[np.ix_(columns[used], columns[used])] += local[np.ix_(used, used)]
    rng = np.random.default_rng(0)
    dx = rng.normal(size=len(H))
    dx[:POSE], dx[6::POSE] = 0, 0  # first pose, prior scales
    dx[-1] = 1.0
    still = [torch.zeros(state.r.shape, dtype=torch.float64)]
    step = 1e-4
    up, down = (problem.cost(problem.retract(state, torch.from_numpy(sign * step * dx), still)) for sign in (1, -1))
    curvature = (up + down - 2 * problem.cost(state)) / step**2
    assert curvature == pytest.approx(dx @ H @ dx, rel=1e-3)


@pytest.mark.parametrize("with_priors", [False, True])
def test_a_few_hosts_at_a_time_give_the_step_of_all_at_once(with_priors: bool) -> None:
    scene = world(frames=2 * BLOCK + 3)
    matches = scene.matches((1, -1, 2, -2), count=12, noise_px=0.3)
    state = scene.state(matches)
    problem = FlowProblem(
        matches=matches, sigma_px=2.0, free_focal=True, fixed=np.arange(len(matches)) == 0, banded=True
    )
    if with_priors:
        prior = DepthPrior(r=1.1 * state.r**0.9, weight=np.full(state.r.shape, 3.0))
        problem = replace(problem, prior=prior, focal_prior=(60.0, 7.0))
    linear = problem.linearize(state)
    parts = list(linear.parts())
    assert len(parts) == 3 + with_priors
    whole = Normal(
        cost=linear.cost,
        cameras=[block for part in parts for block in part.cameras],
        points=[block for part in parts for block in part.points],
    )
    streamed, once = (solve_step(normal, problem.layout, 1e-3) for normal in (linear, whole))
    assert streamed is not None and once is not None
    torch.testing.assert_close(streamed[0], once[0])
    torch.testing.assert_close(streamed[1][0], torch.cat(once[1]))


def test_exact_flow_gives_poses_to_1e_6() -> None:
    scene = world(frames=7)
    matches = scene.matches(OFFSETS, count=120)
    state = perturbed_state(scene.state(matches), 0.01)
    problem = FlowProblem(matches=matches, sigma_px=1.0, free_focal=False, fixed=np.arange(7) == 0, banded=True)
    for _ in range(3):
        state, cost = adjust(problem, state, 30)
    angle, centre = pose_errors(state.w2c, scene.w2c)
    assert angle < 1e-6 and centre < 1e-6, (angle, centre, cost)
    assert np.nanmax(reprojection_errors(matches, state)[matches.weight > 0]) < 1e-3


def perturbed_state(state: FlowState, size: float) -> FlowState:
    rng = np.random.default_rng(3)
    w2c = state.w2c.copy()
    w2c[1:, :3, 3] += size * rng.normal(size=w2c[1:, :3, 3].shape)
    return replace(state, w2c=w2c, r=state.r * np.exp(0.1 * rng.normal(size=state.r.shape)))


def test_free_focal_is_found_and_its_variance_is_that_of_the_dense_inverse() -> None:
    scene = world(frames=7, turn_deg=(1.5, -2.5, 1.0))
    matches = scene.matches(OFFSETS, count=60)
    truth = scene.state(matches)
    problem = FlowProblem(matches=matches, sigma_px=3.0, free_focal=True, fixed=np.arange(7) == 0, banded=True)
    state = replace(truth, intrinsics=truth.intrinsics * np.array([1.1, 1.1, 1, 1]))
    for _ in range(4):
        state, _ = adjust(problem, state, 30)
    assert state.intrinsics[0, 0] == pytest.approx(80, rel=1e-4)

    (normal,) = problem.linearize(truth).parts()
    size = problem.layout.size
    H = np.zeros((size, size))
    point = normal.points[0]
    for t, columns in enumerate(point.columns.numpy()):
        used = columns >= 0
        E, h = point.E[t].numpy()[:, used], point.h[t].numpy()
        local = normal.cameras[0].H[t].numpy()[np.ix_(used, used)] - (E / np.maximum(h, 1e-30)[:, None]).T @ E
        H[np.ix_(columns[used], columns[used])] += local
    free = ~problem.layout.fixed.numpy()
    inverse = np.linalg.pinv(H[np.ix_(free, free)], rcond=1e-11)  # the overall scale is free
    assert focal_variance(problem, truth) == pytest.approx(inverse[-1, -1], rel=1e-2)


def test_straight_motion_does_not_show_the_focal_length_but_a_turning_one_does() -> None:
    straight = world(frames=7, move=(0.0, 0.0, 0.15), turn_deg=(0, 0, 0))
    turning = world(frames=7, move=(0.1, 0.0, 0.1), turn_deg=(1.0, 2.0, 0.0))
    variances = []
    for scene in (straight, turning):
        matches = scene.matches(OFFSETS, count=60)
        problem = FlowProblem(matches=matches, sigma_px=1.0, free_focal=True, fixed=np.arange(7) == 0)
        variances.append(focal_variance(problem, scene.state(matches)))
    assert variances[0] > 30 * variances[1]


def test_a_depth_prior_finds_its_own_scale_per_frame() -> None:
    problem, truth = problem_and_state()
    scales = np.exp(np.linspace(-0.5, 0.5, 5))
    prior = DepthPrior(r=truth.r / scales[:, None], weight=np.full(truth.r.shape, 1.0))
    problem = replace(problem, prior=prior, free_focal=False, fixed=np.ones(5, bool))
    state, _ = adjust(problem, truth, 20)
    assert np.allclose(state.log_scale, np.log(scales), atol=0.05)


def test_robust_against_a_third_of_gross_outliers() -> None:
    scene = world(frames=6)
    matches = scene.matches(OFFSETS, count=120)
    rng = np.random.default_rng(0)
    wrong = rng.random(matches.weight.shape) < 0.3
    matches.goal[wrong] += rng.normal(size=matches.goal[wrong].shape).astype(np.float32) * 15
    state = perturbed_state(scene.state(matches), 0.005)
    problem = FlowProblem(matches=matches, sigma_px=0.5, free_focal=False, fixed=np.arange(6) == 0)
    state, _ = adjust(problem, state, 40)
    angle, centre = pose_errors(state.w2c, scene.w2c)
    assert angle < 2e-3 and centre < 0.01


@pytest.mark.parametrize("width", [1, 3, 12])
def test_banded_solver_against_dense(width: int) -> None:
    rng = np.random.default_rng(width)
    dense = np.zeros((12, 12))
    for d in range(width):
        dense += np.diag(rng.normal(size=12 - d), -d)
    dense = dense + dense.T + 20 * np.eye(12)
    band = np.zeros((width, 12))
    for d in range(width):
        band[d, : 12 - d] = np.diagonal(dense, -d)
    right = rng.normal(size=(12, 2))
    solved = solve_banded(band.T.copy(), right)
    assert solved is not None and np.allclose(solved, np.linalg.solve(dense, right))
    assert solve_banded(-band.T.copy(), right) is None
