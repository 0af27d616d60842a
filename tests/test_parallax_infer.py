"""The parallax system from frames to scene: rendered clips, impossible clips, priors, real sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.align.config import KnownDistance, Priors
from worldline.data.synthetic import render_clip
from worldline.evaluation import trajectory
from worldline.flow.dis import DisFlow, doubled
from worldline.geometry.pointmap import scene_depth
from worldline.io.store import PartialRun
from worldline.scene import Scene4D, Video
from worldline.systems.parallax.flow import FlowConfig, choose_gaps, compute_flows
from worldline.systems.parallax.infer import ParallaxConfig, infer

WHOLE = ParallaxConfig(pixels=None)


def video_of(frames: np.ndarray | torch.Tensor) -> Video:
    return Video(frames=torch.as_tensor(frames), timestamps=torch.arange(len(frames), dtype=torch.float64) / 24)


@pytest.fixture(scope="module")
def truth() -> Scene4D:
    return render_clip(777015, frames=12, size=(96, 144), category="both")


@pytest.fixture(scope="module")
def scene(truth: Scene4D) -> Scene4D:
    assert truth.cameras is not None
    return infer(truth.video, WHOLE, priors=Priors(intrinsics=truth.cameras.intrinsics))


def depth_error(scene: Scene4D, truth: Scene4D, share: float = 1.0) -> float:
    """AbsRel of the most confident share of the pixels, one median scale per clip."""
    found, wanted = scene_depth(scene), scene_depth(truth)
    assert scene.confidence is not None
    sure = truth.valid & (scene.confidence >= scene.confidence[truth.valid].quantile(1 - share))
    scale = (wanted / found)[sure].median()
    return float(((scale * found - wanted).abs() / wanted)[sure].mean())


def test_a_rendered_clip_end_to_end(scene: Scene4D, truth: Scene4D) -> None:
    assert scene.size == truth.size and len(scene) == len(truth) and scene.scale == "relative"
    assert scene.cameras is not None and truth.cameras is not None
    assert torch.isfinite(scene.points).all() and scene.valid.all()
    error = trajectory.absolute_trajectory_error(scene.cameras.cam2world, truth.cameras.cam2world, "sim3")
    assert error < 0.05 * trajectory.path_length(truth.cameras.cam2world)
    constant = scene_depth(truth)[truth.valid]
    trivial = float(((constant.median() - constant).abs() / constant).mean())
    assert depth_error(scene, truth) < 0.5 * trivial
    assert depth_error(scene, truth, 0.5) < 0.8 * depth_error(scene, truth)
    assert torch.allclose(scene.cameras.cam2world[0], torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_the_report_says_what_was_seen(scene: Scene4D) -> None:
    report = scene.provenance.report
    assert report["camera"] == "full" and report["focal"] == "given" and report["warnings"] == []
    assert set(report["parallax_px"]) == {"1", "2", "4", "8"} and report["registered"] == len(scene)
    assert {"flow", "cameras", "depth", "scene"} <= set(report["seconds"])
    assert scene.provenance.system == "parallax" and scene.provenance.weights_sha256 is None


def test_motion_is_found_where_it_is(scene: Scene4D, truth: Scene4D) -> None:
    assert scene.scene_flow is not None and scene.flow_valid is not None
    found, wanted = scene.extras["dynamic"], truth.extras["dynamic"]
    assert (found & wanted).sum() > 0.5 * wanted.sum() and (found & ~wanted).float().mean() < 0.05
    assert not scene.flow_valid[-1].any() and not scene.scene_flow[-1].any()
    static = ~found[:-1]
    assert not scene.scene_flow[:-1][static].any()
    share = scene.scene_flow.norm(dim=-1)[:-1] / scene_depth(scene)[:-1]
    assert share[~wanted[:-1]].mean() < 0.02


def test_larger_frames_are_reduced_and_cameras_follow() -> None:
    frames = np.zeros((2, 90, 120, 3), np.uint8)
    scene = infer(video_of(frames), ParallaxConfig(pixels=30 * 40))
    assert scene.size == (30, 40) and scene.cameras is not None
    assert scene.cameras.size == (30, 40)
    assert scene.cameras.intrinsics[0, 0, 2] == pytest.approx(19.5)
    K = torch.tensor([[100.0, 0, 59.5], [0, 100.0, 44.5], [0, 0, 1]])
    known = infer(video_of(frames), ParallaxConfig(pixels=30 * 40), priors=Priors(intrinsics=K))
    assert known.cameras is not None
    assert known.cameras.intrinsics[0, 0, 0] == pytest.approx(100 / 3)
    assert known.cameras.intrinsics[0, 0, 2] == pytest.approx(19.5)


@pytest.mark.parametrize("frames", [1, 2])
def test_one_and_two_frames(truth: Scene4D, frames: int) -> None:
    scene = infer(truth.video.select(slice(0, 6 * frames, 6)), WHOLE)
    assert len(scene) == frames and torch.isfinite(scene.points).all()
    assert scene.scene_flow is not None and not scene.scene_flow[-1].any()
    if frames == 1:
        assert scene.provenance.report["camera"] == "static" and not scene.confidence.any()


def test_no_texture_is_no_crash_and_no_confidence() -> None:
    scene = infer(video_of(np.full((5, 48, 64, 3), 128, np.uint8)), WHOLE)
    assert scene.provenance.report["camera"] == "static" and scene.provenance.report["warnings"]
    assert torch.isfinite(scene.points).all() and not scene.confidence.any() and not scene.extras["dynamic"].any()


def test_independent_noise_is_no_camera_motion() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 64, 96, 3)).astype(np.uint8)
    scene = infer(video_of(frames), WHOLE)
    assert torch.isfinite(scene.points).all()
    assert scene.provenance.report["camera"] != "full" or float(scene.confidence.mean()) < 0.3


def test_a_static_camera_with_a_prior_has_the_priors_depth() -> None:
    truth = render_clip(777014, frames=8, size=(64, 96), category="object_only")
    prior = scene_depth(truth).clamp(max=50) * torch.linspace(0.5, 2, 8)[:, None, None]
    prior = prior.where(truth.valid, torch.nan)
    scene = infer(truth.video, WHOLE, prior=prior)
    assert scene.provenance.report["camera"] == "static" and not scene.confidence.any()
    found, wanted = scene_depth(scene), scene_depth(truth)
    sure = truth.valid & ~truth.extras["dynamic"]
    ratio = (found / wanted)[sure].log()
    assert ratio.std() < 0.15  # one scale for all frames although the prior's differ by four


def test_a_prior_comes_before_parallax_that_is_noise() -> None:
    """A standing camera with poses that say it moves by a hair: depth is the prior's, and without one it is a guess."""
    frames = (12, 48, 64)
    picture = torch.rand(6, 8, 3, generator=torch.Generator().manual_seed(0))
    picture = picture.repeat_interleave(8, 0).repeat_interleave(8, 1)
    noise = 0.1 * torch.randn(*frames, 3, generator=torch.Generator().manual_seed(1))
    clip = Video(frames=(picture + noise).clamp(0, 1), timestamps=torch.arange(12, dtype=torch.float64) / 24)
    poses = torch.eye(4, dtype=torch.float64).repeat(12, 1, 1)
    poses[:, 0, 3] = 1e-4 * torch.arange(12)
    prior = torch.linspace(4, 2, 48)[None, :, None].expand(frames).contiguous()
    found = scene_depth(infer(clip, WHOLE, prior=prior, priors=Priors(poses=poses)))
    ratio = (found / prior).log()
    assert float((ratio - ratio.median()).abs().max()) < 0.05


def test_given_poses_make_a_metric_scene_in_their_world(truth: Scene4D) -> None:
    assert truth.cameras is not None
    poses = truth.cameras.cam2world.double().clone()
    poses[:, 0, 3] += 5.0
    scene = infer(truth.video, WHOLE, priors=Priors(intrinsics=truth.cameras.intrinsics, poses=poses))
    assert scene.scale == "metric" and scene.cameras is not None
    assert torch.allclose(scene.cameras.cam2world, poses, atol=1e-6)
    sure = truth.valid & (scene.confidence > 0.8)
    assert float(((scene_depth(scene) / scene_depth(truth))[sure]).median()) == pytest.approx(1, abs=0.05)


def test_a_measured_distance_makes_it_metric(truth: Scene4D) -> None:
    first, second = (20.0, 40.0), (120.0, 60.0)
    known = KnownDistance(frame=3, first=first, second=second, metres=2.5)
    scene = infer(truth.video, WHOLE, priors=Priors(distance=known))
    ends = [scene.points[3, int(y), int(x)] for x, y in (first, second)]
    assert scene.scale == "metric" and float((ends[0] - ends[1]).norm()) == pytest.approx(2.5, rel=1e-3)


def test_sensor_depth_makes_it_metric(truth: Scene4D) -> None:
    assert truth.cameras is not None
    sensor = scene_depth(truth).float().where(truth.valid, torch.nan)
    known = Priors(intrinsics=truth.cameras.intrinsics, sensor_depth=sensor)
    scene = infer(truth.video, WHOLE, priors=known)
    sure = truth.valid & (scene.confidence > 0.8)
    assert float((scene_depth(scene) / scene_depth(truth))[sure].median()) == pytest.approx(1, abs=0.05)


def test_what_is_known_to_move_is_not_used_for_cameras(truth: Scene4D) -> None:
    mask = torch.zeros(truth.points.shape[:3], dtype=torch.bool)
    mask[:, 20:50, 30:70] = True
    scene = infer(truth.video, WHOLE, priors=Priors(moving_mask=mask))
    assert scene.extras["dynamic"][mask].all()


def test_bad_input_is_named(truth: Scene4D) -> None:
    with pytest.raises(ValueError, match="no frames"):
        infer(Video(frames=truth.video.frames[:0], timestamps=truth.video.timestamps[:0]))
    with pytest.raises(ValueError, match="depth prior has 3 frames"):
        infer(truth.video, prior=torch.ones(3, 10, 10))


def test_a_stopped_run_goes_on_with_its_cameras(truth: Scene4D, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_at_depth(step: str, done: int, total: int) -> None:
        if step == "triangulation":
            raise Stop

    clip = truth.video.select(slice(0, 6))
    with pytest.raises(Stop):
        infer(clip, WHOLE, cache=PartialRun(tmp_path / "out", {}), progress=stop_at_depth)
    steps: list[str] = []
    resumed = infer(clip, WHOLE, cache=PartialRun(tmp_path / "out", {}), progress=lambda step, *_: steps.append(step))
    assert "cameras" not in steps
    again = infer(clip, WHOLE)
    assert resumed.cameras is not None and again.cameras is not None
    assert torch.equal(resumed.cameras.cam2world, again.cameras.cam2world)
    assert dict(resumed.provenance.report)["camera"] == again.provenance.report["camera"]


def test_the_result_does_not_depend_on_where_arrays_live(truth: Scene4D) -> None:
    clip = truth.video.select(slice(0, 5))
    small = ParallaxConfig(pixels=None, memory_bytes=0)
    a, b = infer(clip, WHOLE), infer(clip, small)
    assert torch.equal(a.points, b.points) and torch.equal(a.confidence, b.confidence)


def test_slow_motion_is_watched_over_longer_gaps_and_small_frames_are_doubled() -> None:
    rng = np.random.default_rng(0)
    import cv2

    base = cv2.GaussianBlur(rng.integers(0, 255, (70, 300)).astype(np.float32), (0, 0), 2)
    base = ((base - base.min()) / np.ptp(base) * 255).astype(np.uint8)
    slow = [base[:60, 40 + t // 4 : 130 + t // 4] for t in range(40)]
    fast = [base[:60, t : 90 + t] for t in range(40)]
    assert choose_gaps(slow, DisFlow(), FlowConfig()) == (1, 2, 4, 8, 16)
    assert choose_gaps(fast, DisFlow(), FlowConfig()) == (1, 2, 4, 8)
    calls: list[tuple[int, int]] = []

    def spy(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        calls.append(source.shape)
        return DisFlow()(source, target)

    found = doubled(spy)(fast[0], fast[1])
    assert calls == [(120, 180)] and found.shape == (60, 90, 2)
    assert np.median(found[10:-10, 10:-10, 0]) == pytest.approx(-1, abs=0.1)
    pairs = compute_flows(fast[:3], spy, FlowConfig(gaps=(1, 2)))
    assert pairs.offsets == (1, -1, 2, -2) and pairs.targets()[0].tolist() == [1, -1, 2, -1]
    assert not pairs.weight[0, 1].any() and pairs.weight[1, 1].mean() > 150


# --- real sequences (in-sample: constants were chosen with them in sight) ---------------------------------------------


def real(folder: Path, name: str, count: int) -> Scene4D:
    import importlib

    from worldline.evaluation.resizing import resize_scene

    adapter = importlib.import_module(f"worldline.data.adapters.{name}")
    scene = next(iter(adapter.convert(folder / name))).select(slice(0, count))
    height, width = scene.size
    shrink = (240 * 320 / (height * width)) ** 0.5
    return resize_scene(scene, (round(height * shrink), round(width * shrink)))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count", "path_percent", "full", "half"),
    [("tartanair", 15, 1.0, 0.45, 0.10), ("hololens", 16, 1.0, 0.13, 0.06), ("kitti_odometry", 12, 1.0, None, None)],
)
def test_real_sequences_with_known_intrinsics(
    shared_data: Path, name: str, count: int, path_percent: float, full: float | None, half: float | None
) -> None:
    truth = real(shared_data, name, count)
    assert truth.cameras is not None
    scene = infer(truth.video, WHOLE, priors=Priors(intrinsics=truth.cameras.intrinsics))
    assert scene.cameras is not None and scene.provenance.report["registered"] == count
    error = trajectory.absolute_trajectory_error(scene.cameras.cam2world, truth.cameras.cam2world, "sim3")
    assert 100 * error / trajectory.path_length(truth.cameras.cam2world) < path_percent
    if full is not None and half is not None:
        assert depth_error(scene, truth) < full and depth_error(scene, truth, 0.5) < half


def test_refinement_can_be_switched_off_and_put_on_any_system(truth: Scene4D) -> None:
    from worldline import api

    clip = truth.video.select(slice(0, 4))
    alone = api.reconstruct(clip, refine="none")
    refined = api.reconstruct(clip, system=api.AUTO_PRIOR, refine="parallax")
    assert alone.provenance.system == api.AUTO_PRIOR and "parallax_px" not in alone.provenance.report
    assert refined.provenance.system == f"parallax+{api.AUTO_PRIOR}" and "parallax_px" in refined.provenance.report
    with pytest.raises(ValueError, match="no refinement 'more'"):
        api.reconstruct(clip, refine="more")
