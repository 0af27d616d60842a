"""Alignment on synthetic truth: one world, right cameras, and honest reports where nothing can be known."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from align_worlds import World, make_world, observe
from worldline import windows
from worldline.align.alignment import Alignment
from worldline.align.observation import Observation
from worldline.align.solve import KnownDistance, Priors, solve
from worldline.align.synchronize import robust_similarity_batch
from worldline.geometry.pose import Similarity, rotation_angle_deg
from worldline.scene import Provenance, Video


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def to_truth(alignment: Alignment, world: World) -> Similarity:
    found, truth = alignment.points.double()[alignment.valid], world.points[alignment.valid]
    s, _, _ = robust_similarity_batch(found[None, ::7], truth[None, ::7], torch.ones(1, len(found[::7])).double())
    return Similarity(scale=s.scale[0], rotation=s.rotation[0], translation=s.translation[0])


def check_cameras(
    alignment: Alignment, world: World, centre: float, degrees: float, focal: float, frames=slice(None)
) -> None:
    s = to_truth(alignment, world)
    pose = s.apply_pose(alignment.cameras.cam2world)[frames]
    truth = world.pose[frames]
    assert (pose[:, :3, 3] - truth[:, :3, 3]).norm(dim=-1).max() < centre
    assert rotation_angle_deg(pose[:, :3, :3], truth[:, :3, :3]).max() < degrees
    assert ((alignment.cameras.focal_px / world.focal) - 1).abs().max() < focal


def check_finite(alignment: Alignment) -> None:
    for value in (alignment.points, alignment.depth, alignment.confidence, alignment.cameras.cam2world):
        assert torch.isfinite(value).all()
    assert torch.isfinite(alignment.cameras.intrinsics).all() and (alignment.depth > 0).all()
    assert torch.allclose(alignment.cameras.cam2world[0], torch.eye(4).double(), atol=1e-9)


def test_77_frames_in_windows_of_25_join_into_one_world() -> None:
    world = make_world(77)
    alignment = solve(observe(world, windows.plan(77, 25, 5)), 77, world.size)
    s = to_truth(alignment, world)
    error = (s.apply(alignment.points.double()) - world.points).norm(dim=-1)
    assert error.mean() < 0.005 * world.extent
    check_cameras(alignment, world, centre=0.005, degrees=0.05, focal=0.002)
    check_finite(alignment)


def test_noise_and_a_third_of_outliers() -> None:
    world = make_world(32)
    alignment = solve(observe(world, windows.plan(32, 16, 8), noise=0.02, outliers=0.3), 32, world.size)
    check_cameras(alignment, world, centre=0.05, degrees=0.5, focal=0.02)
    check_finite(alignment)


def test_garbage_window_among_overlapping_ones_is_rejected() -> None:
    world = make_world(40)
    seen = observe(world, windows.plan(40, 16, 12), noise=0.01)
    seen[1] = replace(seen[1], points=torch.randn(seen[1].points.shape))
    alignment = solve(seen, 40, world.size)
    assert list(alignment.report["windows_rejected"]) == [1]
    check_finite(alignment)
    check_cameras(alignment, world, centre=0.03, degrees=0.3, focal=0.02)


def test_garbage_window_that_breaks_the_chain_is_said() -> None:
    world = make_world(40)
    seen = observe(world, windows.plan(40, 16, 5), noise=0.01)
    seen[1] = replace(seen[1], points=torch.randn(seen[1].points.shape))
    alignment = solve(seen, 40, world.size)
    assert 1 in alignment.report["windows_rejected"]
    assert any("share no" in text for text in alignment.report["undetermined"])
    assert any("interpolated" in text for text in alignment.report["undetermined"])
    check_finite(alignment)


def test_window_in_five_times_the_scale() -> None:
    world = make_world(40)
    seen = observe(world, windows.plan(40, 16, 5), noise=0.01)
    seen[1] = replace(seen[1], points=seen[1].points * 5)
    check_cameras(solve(seen, 40, world.size), world, centre=0.03, degrees=0.3, focal=0.01)


@pytest.mark.parametrize("motion", ["static", "rotation", "plane"])
def test_no_parallax(motion: str) -> None:
    world = make_world(20, motion=motion)
    alignment = solve(observe(world, windows.plan(20, 10, 4), noise=0.02), 20, world.size)
    check_finite(alignment)
    check_cameras(alignment, world, centre=0.08, degrees=1.0, focal=0.02)


def test_static_camera_prior_gives_one_pose() -> None:
    world = make_world(20, motion="static")
    alignment = solve(observe(world, windows.plan(20, 10, 4), noise=0.02), 20, world.size, Priors(static_camera=True))
    assert alignment.report["path_length"] == 0
    check_cameras(alignment, world, centre=0.02, degrees=0.1, focal=0.01)


@pytest.mark.parametrize("frames", [1, 2])
def test_very_short_videos(frames: int) -> None:
    world = make_world(frames)
    alignment = solve(observe(world, windows.plan(frames, 16, 5), noise=0.01), frames, world.size)
    check_finite(alignment)
    check_cameras(alignment, world, centre=0.05, degrees=0.5, focal=0.02)


def test_zoom_is_followed_when_the_focal_is_not_shared() -> None:
    world = make_world(30, zoom=1.3)
    seen = observe(world, windows.plan(30, 16, 6), noise=0.01)
    alignment = solve(seen, 30, world.size, Priors(shared_focal=False))
    check_cameras(alignment, world, centre=0.05, degrees=0.5, focal=0.02)


def test_scene_flow_is_scaled_and_rotated_with_its_window() -> None:
    world = make_world(30)
    alignment = solve(observe(world, windows.plan(30, 16, 6), with_flow=True), 30, world.size)
    s = to_truth(alignment, world)
    assert alignment.scene_flow is not None and alignment.flow_valid is not None
    flow = s.apply_vector(alignment.scene_flow.double())
    assert not alignment.flow_valid[-1].any() and alignment.flow_valid[:-1].all()
    assert (flow - world.flow)[:-1].abs().max() < 0.01 * world.flow.norm(dim=-1).max()
    still = world.flow[:-1].norm(dim=-1) > 0.02 * world.depth[:-1]
    assert torch.equal(alignment.dynamic[:-1] & still, still)


def test_a_metric_distance_and_sensor_depth_set_the_scale() -> None:
    world = make_world(10)
    seen = observe(world, [range(10)])
    a, b = world.points[3, 2, 5], world.points[3, 20, 30]
    distance = KnownDistance(frame=3, first=(5.0, 2.0), second=(30.0, 20.0), metres=float((a - b).norm()))
    sensor = world.depth.float() * (torch.rand(world.depth.shape) > 0.5)
    for priors in (Priors(distance=distance), Priors(sensor_depth=sensor)):
        alignment = solve(seen, 10, world.size, priors)
        assert alignment.scale == "metric"
        assert abs(float((alignment.depth / world.depth).median()) - 1) < 0.01


def test_known_poses_give_the_world() -> None:
    world = make_world(24)
    known = torch.zeros(24, dtype=torch.bool)
    known[[0, 5, 11, 17, 23]] = True
    poses = torch.where(known[:, None, None], world.pose * 1.0, torch.nan)
    poses = poses.clone()
    poses[:, :3, 3] *= 2
    alignment = solve(observe(world, windows.plan(24, 12, 4), noise=0.005), 24, world.size, Priors(poses=poses))
    assert (alignment.cameras.cam2world[known] - poses[known]).abs().max() < 1e-9
    assert (alignment.cameras.cam2world[~known, :3, 3] - 2 * world.pose[~known, :3, 3]).norm(dim=-1).max() < 0.05


class _Counting(Sequence):
    """Windows that are read one at a time and counted."""

    def __init__(self, seen: list[Observation]) -> None:
        self.seen, self.reads = seen, [0] * len(seen)
        self.alive: weakref.WeakSet[Observation] = weakref.WeakSet()
        self.most = 0

    def __len__(self) -> int:
        return len(self.seen)

    def __getitem__(self, k: int) -> Observation:
        self.reads[k] += 1
        fresh = copy.copy(self.seen[k])
        self.alive.add(fresh)
        self.most = max(self.most, len(self.alive))
        return fresh


def test_windows_are_streamed() -> None:
    world = make_world(60)
    lazy = _Counting(observe(world, windows.plan(60, 10, 4), noise=0.01))
    alignment = solve(lazy, 60, world.size)
    for _ in alignment.frames():
        pass
    assert lazy.most <= 4  # of 9 windows
    assert sum(lazy.reads) <= 2 * len(lazy) + 12  # the type checks of pytest look at some more


def test_scene_has_cameras_and_report() -> None:
    world = make_world(6)
    alignment = solve(observe(world, [range(6)]), 6, world.size)
    video = Video(frames=torch.zeros(6, *world.size, 3, dtype=torch.uint8), timestamps=torch.arange(6).double())
    scene = alignment.scene(video, Provenance(system="test"))
    assert scene.cameras is not None and len(scene) == 6
    assert "undetermined" in scene.provenance.report
    with pytest.raises(ValueError, match="frames"):
        alignment.scene(video.select(slice(0, 5)), Provenance(system="test"))


def test_masked_pixels_may_be_anything_but_counted_ones_must_be_finite() -> None:
    points = torch.rand(2, 8, 8, 3)
    points[0, 0, 0] = torch.nan
    confidence = torch.ones(2, 8, 8)
    with pytest.raises(ValueError, match="NaN or infinite at 1 pixels"):
        Observation(frames=(0, 1), points=points, confidence=confidence)
    confidence[0, 0, 0] = 0
    Observation(frames=(0, 1), points=points, confidence=confidence)


def test_a_video_nobody_can_see_is_said_not_invented() -> None:
    nothing = Observation(frames=(0, 1, 2), points=torch.zeros(3, 8, 8, 3), confidence=torch.zeros(3, 8, 8))
    alignment = solve([nothing], 3, (8, 8))
    check_finite(alignment)
    assert not alignment.valid.any() and alignment.report["undetermined"]


def test_wrong_priors_are_refused() -> None:
    world = make_world(3)
    seen = observe(world, [range(3)])
    with pytest.raises(ValueError, match="poses"):
        solve(seen, 3, world.size, Priors(poses=torch.eye(4).repeat(4, 1, 1)))
    with pytest.raises(ValueError, match="intrinsics"):
        solve(seen, 3, world.size, Priors(distortion=(0.1, 0.0, 0.0, 0.0)))


def one_in_ten(seen: list[Observation]) -> list[Observation]:
    g = torch.Generator().manual_seed(5)
    return [
        replace(o, points=torch.randn(o.points.shape, generator=g) * o.points.std()) if k % 10 == 4 else o
        for k, o in enumerate(seen)
    ]


def test_one_garbage_window_in_ten() -> None:
    world = make_world(60, size=(20, 30), focal=27.0)
    seen = one_in_ten(observe(world, windows.plan(60, 12, 8), noise=0.01))
    alignment = solve(seen, 60, world.size)
    assert list(alignment.report["windows_rejected"]) == [k for k in range(len(seen)) if k % 10 == 4]
    check_finite(alignment)
    check_cameras(alignment, world, centre=0.05, degrees=0.5, focal=0.02)


NONSENSE = {
    "noise": lambda p: torch.randn(p.shape, generator=torch.Generator().manual_seed(0)),
    "one point": torch.ones_like,
    "a line": lambda p: p * torch.tensor([1.0, 0.0, 0.0]),
    "a mirror": lambda p: -p,
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_called_nonsense(kind: str) -> None:
    world = make_world(12, size=(16, 24), focal=22.0)
    seen = observe(world, windows.plan(12, 8, 4), noise=0.01)
    alignment = solve([replace(o, points=NONSENSE[kind](o.points)) for o in seen], 12, world.size)
    check_finite(alignment)
    assert any("camera" in text for text in alignment.report["undetermined"])


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_the_unit_of_length_does_not_matter(unit: float) -> None:
    world = make_world(12, size=(16, 24), focal=22.0)
    seen = observe(world, windows.plan(12, 8, 4), noise=0.01)
    alignment = solve([replace(o, points=o.points * unit) for o in seen], 12, world.size)
    check_finite(alignment)
    check_cameras(alignment, world, centre=0.05, degrees=0.5, focal=0.02)
    assert not alignment.report["undetermined"]
