"""Every term of the energy: its derivatives, that it is there only with data, and what it does to the result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from align_worlds import World, make_world, observe
from worldline import windows
from worldline.align.alignment import Alignment
from worldline.align.camera_terms import AccelerationTerm, FocalTerm, RayTerm, ScaleGaugeTerm, SmoothnessTerm
from worldline.align.config import AlignConfig, Priors
from worldline.align.energy import Energy
from worldline.align.kernels import CauchyKernel, NormKernel
from worldline.align.motion_terms import OpticalFlowTerm, SceneFlowTerm
from worldline.align.observation import Observation
from worldline.align.sampling import Samples, gather
from worldline.align.schur import Layout, solve_step
from worldline.align.solve import solve
from worldline.align.state import State, make_columns, retract
from worldline.align.terms import DisparityTerm, PointMapTerm, Term
from worldline.geometry.fit import umeyama
from worldline.geometry.pose import Similarity, from_rt, so3_exp
from worldline.geometry.raymap import from_cameras


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


def small_problem(own_focal: bool) -> tuple[State, Samples, Tensor]:
    """Six frames in two windows with everything perturbed."""
    world = make_world(6)
    samples = gather(observe(world, [range(0, 4), range(2, 6)], noise=0.02), 6, world.size, Priors(), 20, 0)
    V, n = samples.weight.shape
    samples = replace(samples, disparity=torch.rand(V, n).double() + 0.3)
    state = State(
        rotation=so3_exp(normal(6, 3, scale=0.05)),
        centre=normal(6, 3, scale=0.1),
        log_focal=3.5 + normal(6 if own_focal else 1, scale=0.1),
        log_depth=2 + normal(6, n, scale=0.1),
        windows=Similarity(
            scale=normal(2, scale=0.1).exp(),
            rotation=so3_exp(normal(2, 3, scale=0.3)),
            translation=normal(2, 3, scale=0.3),
        ),
        disparity=normal(2, 2).abs(),
        trajectory=Similarity(
            scale=normal(2, scale=0.1).exp(), rotation=so3_exp(normal(2, 3, scale=0.2)), translation=normal(2, 3)
        ),
    )
    return state, samples, samples.uv - torch.tensor([17.5, 11.5])


def some_terms(samples: Samples, xy: Tensor) -> dict[str, Term]:
    V, n = samples.weight.shape
    w, one, B = torch.rand(V, n).double(), torch.ones(V).double(), 12
    axis = torch.nn.functional.normalize(normal(6, n, 3), dim=-1)
    moving = torch.rand(6, n).double()
    moving[-1] = 0
    poses = from_rt(so3_exp(normal(V, 3, scale=0.2)), normal(V, 3))
    return {
        "points": PointMapTerm(weight=w, kernel=NormKernel(eps=0.1)),
        "points, unbiased": PointMapTerm(
            weight=w, kernel=CauchyKernel(), lateral=w + 0.1, along=2 * w + 0.1, axis=axis, unit=1.1 * one
        ),
        "disparity": DisparityTerm(weight=w),
        "disparity, unbiased": DisparityTerm(weight=w, kernel=CauchyKernel(), sigma=w + 0.1),
        "rays": RayTerm(
            pose=poses, window=samples.window, slot=samples.frame, weight=one, turn_unit=one, move_unit=one
        ),
        "smoothness": SmoothnessTerm(weight=0.5),
        "focal": FocalTerm(mean=one[:1] * 3.3, sigma=one[:1] * 0.2, slot=torch.zeros(1, dtype=torch.long)),
        "gauge": ScaleGaugeTerm(strength=3.0),
        "optical flow": OpticalFlowTerm(
            target=xy + normal(6, n, 2, scale=0.5), weight=moving, motion=normal(6, n, 3, scale=0.05), sigma=0.7
        ),
        "scene flow": SceneFlowTerm(
            window=torch.zeros(B, dtype=torch.long),
            other=torch.ones(B, dtype=torch.long),
            source=normal(B, 3),
            target=normal(B, 3),
            tau=torch.rand(B).double() + 0.5,
            weight=0.7,
        ),
    }


@pytest.mark.parametrize("own_focal", [False, True])
def test_gradients_are_those_of_the_cost(own_focal: bool) -> None:
    state, samples, xy = small_problem(own_focal)
    columns = make_columns(samples, 6, own_focal)
    still = torch.zeros_like(state.log_depth)
    for name, term in some_terms(samples, xy).items():
        energy = Energy([term], samples, xy, columns, torch.zeros(columns.size, dtype=torch.bool))
        found = energy.linearize(state)
        gradient = torch.zeros(columns.size, dtype=torch.float64)
        for block in found.cameras:
            used = block.columns >= 0
            gradient.index_add_(0, block.columns[used], block.g[used])
        step = normal(columns.size, scale=1e-6)
        change = energy.cost(retract(state, columns, step, still)) - energy.cost(retract(state, columns, -step, still))
        assert change / 2 == pytest.approx(float(gradient @ step), rel=1e-4, abs=1e-11), name
        if any(bool((point.h > 0).any()) for point in found.points):
            slope = torch.cat([point.b for point in found.points])
            deeper = normal(*state.log_depth.shape, scale=1e-6)
            nothing = torch.zeros(columns.size, dtype=torch.float64)
            change = energy.cost(retract(state, columns, nothing, deeper)) - energy.cost(
                retract(state, columns, nothing, -deeper)
            )
            assert change / 2 == pytest.approx(float((slope * deeper).sum()), rel=1e-4, abs=1e-11), name


def test_acceleration_gradient_near_small_turns() -> None:
    state, samples, xy = small_problem(False)
    state = replace(state, rotation=so3_exp(normal(6, 3, scale=0.01)))
    columns = make_columns(samples, 6, False)
    energy = Energy(
        [AccelerationTerm(turn=0.01, move=0.1)], samples, xy, columns, torch.zeros(columns.size, dtype=torch.bool)
    )
    gradient = torch.zeros(columns.size, dtype=torch.float64)
    for block in energy.linearize(state).cameras:
        gradient.index_add_(0, block.columns.flatten(), block.g.flatten())
    step, still = normal(columns.size, scale=1e-7), torch.zeros_like(state.log_depth)
    change = energy.cost(retract(state, columns, step, still)) - energy.cost(retract(state, columns, -step, still))
    assert change / 2 == pytest.approx(float(gradient @ step), rel=0.02)


def test_banded_and_dense_steps_agree() -> None:
    world = make_world(40)
    samples = gather(observe(world, windows.plan(40, 8, 4), noise=0.02), 40, world.size, Priors(), 20, 0)
    n = samples.uv.shape[1]
    dense, banded = make_columns(samples, 40, False), make_columns(samples, 40, False, dense_below=0)
    assert dense.bandwidth is None and banded.bandwidth is not None and banded.bandwidth < banded.size // 2
    state = State(
        rotation=world.pose[:, :3, :3],
        centre=world.pose[:, :3, 3],
        log_focal=world.focal[:1].log(),
        windows=Similarity(
            scale=torch.ones(9).double(),
            rotation=so3_exp(torch.zeros(9, 3).double()),
            translation=torch.zeros(9, 3).double(),
        ),
        log_depth=torch.full((40, n), 1.0).double(),
    )
    xy, weight = samples.uv - torch.tensor([17.5, 11.5]), samples.weight
    terms: list[Term] = [
        PointMapTerm(weight=weight, kernel=CauchyKernel(width=100.0)),
        AccelerationTerm(turn=0.1, move=0.1),
    ]
    terms.append(
        OpticalFlowTerm(target=xy, weight=torch.ones(40, n).double(), motion=torch.zeros(40, n, 3).double(), sigma=5.0)
    )
    found = Energy(terms, samples, xy, dense, torch.zeros(dense.size, dtype=torch.bool)).linearize(state)
    layouts = [Layout(size=dense.size, border=dense.border, bandwidth=b) for b in (None, banded.bandwidth)]
    steps = [solve_step(found, layout, 1e-3) for layout in layouts]
    assert steps[0] is not None and steps[1] is not None
    torch.testing.assert_close(steps[0][0], steps[1][0], rtol=1e-5, atol=1e-7)


def with_extras(world: World, seen: list[Observation], noise: float) -> list[Observation]:
    """The same windows with noisy disparity and ray maps."""
    g = torch.Generator().manual_seed(3)
    out = []
    for o in seen:
        f = torch.tensor(o.frames)
        depth = world.depth[f]
        d = (
            3 / depth * (1 + noise * torch.randn(depth.shape, generator=g))
            - 0.4
            + 0.5 * noise * torch.randn(depth.shape, generator=g)
        )
        K = torch.diag(torch.tensor([1.0, 1.0, 1.0])).double().repeat(len(f), 1, 1)
        K[:, 0, 0] = K[:, 1, 1] = world.focal[f]
        K[:, 0, 2], K[:, 1, 2] = (world.size[1] - 1) / 2, (world.size[0] - 1) / 2
        home = torch.linalg.inv(world.pose[f[0]]) @ world.pose[f]
        direction, moment = from_cameras(K, home, world.size)
        direction = direction + 0.2 * noise * torch.randn(direction.shape, generator=g)
        out.append(replace(o, disparity=d.float(), ray_direction=direction.float(), ray_moment=moment.float()))
    return out


def centre_error(alignment: Alignment, world: World) -> float:
    found, true = alignment.cameras.cam2world[:, :3, 3], world.pose[:, :3, 3]
    return float((umeyama(found, true).apply(found) - true).norm(dim=-1).square().mean().sqrt())


def test_terms_are_absent_without_data() -> None:
    world = make_world(20)
    seen = observe(world, windows.plan(20, 10, 5), noise=0.01, gauge=0.1)
    assert set(solve(seen, 20, world.size).report["objective"]) == {"points", "smoothness", "focal"}
    every = with_extras(world, seen, 0.01)
    flow = torch.zeros(19, *world.size, 2)
    named = set(solve(every, 20, world.size, optical_flow=flow).report["objective"])
    assert named == {"points", "disparity", "rays", "smoothness", "focal", "ray focal", "optical flow"}
    with_motion = observe(world, windows.plan(20, 10, 5), noise=0.01, gauge=0.1, with_flow=True)
    assert "scene flow" in solve(with_motion, 20, world.size).report["objective"]


def test_default_focal_is_right_where_the_published_one_drifts() -> None:
    world = make_world(24, size=(32, 48), focal=40.0)
    seen = with_extras(world, observe(world, windows.plan_stride(24, 16, 4), noise=0.03, gauge=0.1), 0.05)
    error = {}
    for objective in ("default", "published"):
        alignment = solve(seen, 24, world.size, config=AlignConfig(objective=objective))
        error[objective] = abs(float(alignment.cameras.focal_px[0] / world.focal[0]) - 1)
    assert error["default"] < 0.01
    assert error["published"] > 0.05  # a dolly zoom lowers the published objective


def test_disparity_improves_depth_and_rays_improve_poor_points() -> None:
    world = make_world(24)
    seen = observe(world, windows.plan(24, 16, 8), noise=0.05, gauge=0.1)
    with_both = with_extras(world, seen, 0.01)

    def depth_error(a: Alignment) -> float:
        ratio = a.depth.double() / world.depth
        return float((ratio / ratio.median() - 1).abs().mean())

    assert depth_error(solve(with_both, 24, world.size)) < 0.6 * depth_error(solve(seen, 24, world.size))


def true_flow(world: World) -> Tensor:
    """Optical flow of the analytic world, pixels."""
    T, H, W = world.depth.shape
    after = torch.linalg.inv(world.pose[1:])
    q = torch.einsum("tij,thwj->thwi", after[:, :3, :3], (world.points + world.flow)[:-1]) + after[:, None, None, :3, 3]
    uv = q[..., :2] / q[..., 2:] * world.focal[1:, None, None, None] + torch.tensor([(W - 1) / 2, (H - 1) / 2])
    y, x = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    return (uv - torch.stack([x, y], -1)).float()


def test_optical_flow_steadies_cameras() -> None:
    world = make_world(24, size=(32, 48), focal=40.0)
    seen = observe(world, windows.plan(24, 16, 8), noise=0.02)
    g = torch.Generator().manual_seed(1)
    blurred = [replace(o, points=o.points + 0.03 * o.points.std() * coarse_noise(o, g)) for o in seen]
    flow = true_flow(world) + 0.1 * torch.randn(23, *world.size, 2, generator=g)
    flow[:, ::3] = torch.nan
    without, with_flow = solve(blurred, 24, world.size), solve(blurred, 24, world.size, optical_flow=flow)
    assert with_flow.report["objective"]["optical flow"] > 0
    assert centre_error(with_flow, world) < 0.8 * centre_error(without, world)


def coarse_noise(o: Observation, g: torch.Generator) -> Tensor:
    """Errors that neighbours share, different in every frame."""
    coarse = torch.randn(len(o), 3, 3, 4, generator=g)
    return torch.nn.functional.interpolate(coarse, o.size, mode="bilinear").permute(0, 2, 3, 1)


def test_wrong_flow_shapes_are_refused() -> None:
    world = make_world(4)
    with pytest.raises(ValueError, match="Optical flow"):
        solve(observe(world, [range(4)]), 4, world.size, optical_flow=torch.zeros(4, *world.size, 2))


def test_a_loop_window_stops_drift() -> None:
    world = make_world(100, seed=2)
    seen = observe(world, windows.plan(100, 10, 3), noise=0.03, seed=4)
    # every window's last frames are a little larger: scale drifts along the chain
    seen = [replace(o, points=o.points * torch.linspace(1, 1.04, len(o))[:, None, None, None]) for o in seen]
    ends = (0, 1, 2, 3, 96, 97, 98, 99)
    f = torch.tensor(ends)
    loop = Observation(frames=ends, points=(0.7 * world.points[f]).float(), confidence=torch.ones(8, *world.size))
    alone = AlignConfig(loops=False)  # found by itself otherwise: test_align_loops.py
    open_chain, closed = (solve(o, 100, world.size, config=alone) for o in (seen, [*seen, loop]))
    scale = lambda a: float((a.depth[-4:] / world.depth[-4:]).median() / (a.depth[:4] / world.depth[:4]).median())  # noqa: E731
    assert abs(scale(closed) - 1) < 0.25 * abs(scale(open_chain) - 1)


def test_gauges_of_windows_do_not_matter() -> None:
    world = make_world(20)
    plan = windows.plan(20, 12, 6)
    one, two = (solve(observe(world, plan, noise=0.01, seed=1, gauge=g), 20, world.size) for g in (0.0, 1.0))
    first, second = one.cameras.cam2world, two.cameras.cam2world
    fit = umeyama(first[:, :3, 3], second[:, :3, 3])
    assert (fit.apply(first[:, :3, 3]) - second[:, :3, 3]).norm(dim=-1).max() < 0.03
    again = solve(observe(world, plan, noise=0.01, seed=1, gauge=1.0), 20, world.size)
    assert torch.equal(again.cameras.cam2world, second)


def test_a_frame_that_makes_no_sense_is_named() -> None:
    world = make_world(20)
    seen = observe(world, [range(20)], noise=0.01)
    points = seen[0].points.clone()
    points[7] = torch.randn(points[7].shape) * points.std()
    alignment = solve([replace(seen[0], points=points)], 20, world.size)
    assert alignment.report["frames_unreliable"] == [7]
    assert any("[7]" in text for text in alignment.report["undetermined"])


def test_wrong_intrinsics_are_noticed() -> None:
    world = make_world(16)
    seen = observe(world, windows.plan(16, 10, 4), noise=0.01)
    K = torch.tensor([[33.0, 0, 17.5], [0, 33.0, 11.5], [0, 0, 1]])
    right = solve(seen, 16, world.size, Priors(intrinsics=K))
    wrong = solve(
        seen,
        16,
        world.size,
        Priors(
            intrinsics=K * torch.tensor([[1.3], [1.3], [1.0]])
            + torch.tensor([[0, 0, -0.3 * 17.5], [0, 0, -0.3 * 11.5], [0, 0, 0]])
        ),
    )
    assert not any("contradicts" in text for text in right.report["undetermined"])
    assert any("contradicts" in text for text in wrong.report["undetermined"])


def test_distorted_images_with_known_coefficients() -> None:
    """Points seen through a distorting lens: with its coefficients the cameras are right, without they are not."""
    world = make_world(12, motion="handheld")
    K = torch.tensor([[33.0, 0, 17.5], [0, 33.0, 11.5], [0, 0, 1]]).double()
    k1 = 0.25
    H, W = world.size
    y, x = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    bent = torch.stack([(x - 17.5) / 33, (y - 11.5) / 33], -1)
    ideal = bent.clone()
    for _ in range(30):
        ideal = bent / (1 + k1 * (ideal**2).sum(-1, keepdim=True))
    ray = torch.cat([ideal, torch.ones_like(ideal[..., :1])], -1)
    local = 3 * ray * (1 + 0.3 * torch.sin(5 * x / W + 3 * y / H))[..., None]
    points = local @ world.pose[:, None, :3, :3].mT + world.pose[:, None, None, :3, 3]
    seen = [Observation(frames=tuple(range(12)), points=points.float(), confidence=torch.ones(12, H, W))]
    right = solve(seen, 12, world.size, Priors(intrinsics=K, distortion=(k1, 0.0, 0.0, 0.0)))
    wrong = solve(seen, 12, world.size, Priors(intrinsics=K))
    assert centre_error(right, world) < 0.1 * centre_error(wrong, world)
    torch.testing.assert_close(right.points.double(), points, atol=2e-3, rtol=0)


def test_dis_flow_sees_a_shift() -> None:
    from worldline.align.optical_flow import dis_flow
    from worldline.scene import Video

    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 16, 20, generator=g)
    picture = torch.nn.functional.interpolate(coarse, (64, 80), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 1)
    frames = torch.stack([picture[4:60, 4:70], picture[4:60, 2:68]])
    flow = dis_flow(Video(frames=frames, timestamps=torch.arange(2).double()))
    known = torch.isfinite(flow).all(-1)
    assert known.float().mean() > 0.7
    assert (flow[known] - torch.tensor([2.0, 0.0])).norm(dim=-1).median() < 0.3
    assert not known[0, :, -1].any()  # what leaves the image has no flow


def test_moving_pixels_are_found_by_scene_flow_and_by_optical_flow() -> None:
    world = make_world(24, size=(32, 48), focal=40.0)
    plan = windows.plan(24, 16, 8)
    moved = world.flow.norm(dim=-1) > 0.01 * world.depth
    found = solve(observe(world, plan, noise=0.003, with_flow=True), 24, world.size).dynamic
    assert torch.equal(found[:-1] & moved[:-1], moved[:-1]) and moved.sum() > 1000
    assert (found & ~world.moving)[:-1].float().mean() < 0.01
    flow = true_flow(world)
    flow[:, :, :16] += torch.tensor([0.5, 0.3])  # a third of the picture moves by 0.6 pixels more than the world allows
    found = solve(observe(world, plan, noise=0.003), 24, world.size, optical_flow=flow).dynamic[:-1]
    still = ~world.moving[:-1]
    assert found[:, :, :16][still[:, :, :16]].float().mean() > 0.9
    assert found[:, :, 16:][still[:, :, 16:]].float().mean() < 0.05
