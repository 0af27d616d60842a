"""Loop closure: far windows that see the same surfaces end drift; windows that do not are left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from align_worlds import World, make_world, observe
from worldline import windows
from worldline.align.alignment import Alignment
from worldline.align.loop_matches import Loops
from worldline.align.observation import Observation
from worldline.align.solve import AlignConfig, Priors, solve
from worldline.align.synchronize import perturb
from worldline.geometry.pose import Similarity, rotation_angle_deg, so3_exp

FRAMES = 120


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drifting(world: World) -> list[Observation]:
    """Windows whose last frames are turned and enlarged a little, always the same way: an open chain runs away."""
    seen = observe(world, windows.plan(FRAMES, 12, 4), noise=0.01, seed=4, gauge=0.3)
    share = torch.linspace(0, 1, 12)
    axis = torch.deg2rad(torch.tensor([0.0, 0.4, 0.0]))
    turn, grow = so3_exp(share[:, None] * axis), 1 + 0.006 * share
    out = []
    for o in seen:
        origin = o.points[0].mean((0, 1))
        bent = grow[:, None, None, None] * ((o.points - origin) @ turn[:, None].mT) + origin
        out.append(replace(o, points=bent))
    return out


def scale_and_turn_error(alignment: Alignment, world: World) -> tuple[float, float]:
    """How scale and orientation of the last frames differ from those of the first ones."""
    ratio = alignment.depth.double() / world.depth
    pose, truth = alignment.cameras.cam2world[:, :3, :3], world.pose[:, :3, :3]
    return float(ratio[-5:].median() / ratio[:5].median() - 1), float(rotation_angle_deg(pose[-1], truth[-1]))


def test_seeing_the_room_again_stops_drift() -> None:
    world = make_world(FRAMES, size=(32, 48), focal=40.0, seed=3)
    seen = drifting(world)
    open_chain = solve(seen, FRAMES, world.size, config=AlignConfig(loops=False))
    closed = solve(seen, FRAMES, world.size)
    before, after = scale_and_turn_error(open_chain, world), scale_and_turn_error(closed, world)
    assert "loops" not in open_chain.report and len(closed.report["loops"]) >= 2
    assert abs(after[0]) < 0.5 * abs(before[0]) and after[1] < 0.5 * before[1], (before, after)
    found = closed.report["loops"][0]
    assert found["frames"][1] - found["frames"][0] > 36 and 0.35 < found["overlap"] <= 1
    assert closed.report["objective"]["loops"] > 0


def test_places_that_only_look_near_are_not_joined() -> None:
    """The second half shows another room, but the chain says the camera is back at the start."""
    first, other = make_world(FRAMES, seed=3), make_world(FRAMES, seed=8)
    half = FRAMES // 2
    bumps = 1 + 0.25 * torch.sin(torch.arange(36.0) * 0.9)[None] * torch.cos(torch.arange(24.0) * 0.8)[:, None]
    points = first.points.clone()
    centre = other.pose[half:, None, None, :3, 3]
    points[half:] = centre + (other.points[half:] - centre) * bumps[None, ..., None].double()
    world = replace(first, points=points, pose=torch.cat([first.pose[:half], other.pose[half:]]))
    alignment = solve(observe(world, windows.plan(FRAMES, 12, 4), noise=0.005), FRAMES, world.size)
    assert all((a < half) == (b < half) for a, b in (loop["frames"] for loop in alignment.report.get("loops", [])))


def test_a_short_video_has_no_loops_to_close() -> None:
    world = make_world(24)
    report = solve(observe(world, windows.plan(24, 12, 4), noise=0.005), 24, world.size).report
    assert "loops" not in report


def test_loops_leave_known_poses_and_a_resting_camera_alone() -> None:
    world = make_world(FRAMES, seed=3)
    seen = observe(world, windows.plan(FRAMES, 12, 4), noise=0.005)
    poses = world.pose.clone()
    poses[1:-1] = torch.nan
    alignment = solve(seen, FRAMES, world.size, Priors(poses=poses))
    assert (alignment.cameras.cam2world[[0, -1]] - world.pose[[0, -1]]).abs().max() < 1e-9
    still = make_world(80, motion="static")
    alone = solve(observe(still, windows.plan(80, 12, 4)), 80, still.size, Priors(static_camera=True))
    assert alone.report["path_length"] == 0


def random_loops(generator: torch.Generator) -> tuple[Loops, Similarity]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    state = Similarity(scale=(0.3 * normal(4)).exp(), rotation=so3_exp(normal(4, 3)), translation=normal(4, 3))
    ids = torch.tensor([0, 0, 1, 3]), torch.tensor([2, 3, 3, 1])
    return Loops(
        window=ids[0], other=ids[1], source=normal(4, 3), normal=normal(4, 3), offset=normal(4), floor=1.0
    ), state


def test_the_derivative_of_a_loop_is_that_of_its_residual() -> None:
    loops, state = random_loops(torch.Generator().manual_seed(0))
    _, own, far, across = loops.residual(state)
    J = loops.jacobian(own, far, across)
    step = 1e-6
    for column in range(14):
        for match in range(4):
            window = int((loops.window if column < 7 else loops.other)[match])
            move = torch.zeros(4, 7, dtype=torch.float64)
            move[window, column % 7] = step
            slope = (loops.residual(perturb(state, move))[0] - loops.residual(perturb(state, -move))[0]) / (2 * step)
            assert float(slope[match]) == pytest.approx(float(J[match, column]), abs=1e-6)
