"""Metrics: zero exactly where they should be, and in agreement with evo and with direct definitions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldline.data.adapters import encodings
from worldline.evaluation import depth, gauge, image, motion, tracks, trajectory
from worldline.evaluation.gauge import DepthGauge, align_depth
from worldline.geometry import camera, pose

FREEDOM = {  # what each estimator must absorb: (scale, shift)
    "none": (False, False),
    "median": (True, False),
    "scale_l2": (True, False),
    "scale_l1": (True, False),
    "scale_weiszfeld10": (True, False),
    "scale_shift_l2": (True, True),
    "scale_shift_l1": (True, True),
    "scale_shift_adam_1e-4_1000": (True, False),
    "scale_shift_adam_1e-2_5000": (True, True),
}


def _depths(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = 1 + 9 * torch.rand(3, 8, 12, generator=generator, dtype=torch.float64)
    return truth, torch.rand(truth.shape, generator=generator) > 0.2


def _random_path(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    steps = 0.2 * torch.randn(count, 6, generator=generator, dtype=torch.float64)
    poses = [torch.eye(4, dtype=torch.float64)]
    for step in steps[1:]:
        poses.append(poses[-1] @ pose.se3_exp(step))
    return torch.stack(poses)


# ---------------------------------------------------------------------------------------------------------- depth


@pytest.mark.parametrize("estimator", FREEDOM)
def test_allowed_gauge_is_free_and_others_are_not(estimator: str) -> None:
    truth, mask = _depths()
    scale_free, shift_free = FREEDOM[estimator]
    # Adam's steps do not shrink: even for a perfect prediction the published optimisers end near the optimum, not on it
    exact = {"scale_shift_adam_1e-4_1000": 1e-4, "scale_shift_adam_1e-2_5000": 3e-3}.get(estimator, 1e-9)
    for scale, shift, free in ((2.5, 0.0, scale_free), (1.0, 1.5, shift_free), (0.4, 0.7, scale_free and shift_free)):
        aligned, _ = align_depth((truth - shift) / scale, truth, mask, DepthGauge(estimator=estimator))
        error = depth.depth_errors(aligned[mask], truth[mask])["abs_rel"]
        assert (error < exact) if free else (error > 1e-2), (estimator, scale, shift, error)


def test_disparity_gauge_and_per_frame_gauge() -> None:
    truth, mask = _depths()
    affine = 1 / (2 * (1 / truth) + 0.3)
    flat = DepthGauge(estimator="scale_shift_l2", space="disparity")
    assert depth.depth_errors(align_depth(affine, truth, mask, flat)[0][mask], truth[mask])["abs_rel"] < 1e-9
    flicker = truth * torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    whole = align_depth(flicker, truth, mask, DepthGauge(estimator="scale_l1"))[0]
    each = align_depth(flicker, truth, mask, DepthGauge(estimator="scale_l1", per="frame"))[0]
    assert depth.depth_errors(each[mask], truth[mask])["abs_rel"] < 1e-9
    assert depth.depth_errors(whole[mask], truth[mask])["abs_rel"] > 0.1


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), outliers=st.floats(0.0, 0.4))
def test_exact_l1_is_never_above_any_published_estimator(seed: int, outliers: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 + 5 * torch.rand(300, generator=generator, dtype=torch.float64)
    y = 1.7 * x + 0.8 + 0.2 * torch.randn(300, generator=generator, dtype=torch.float64)
    y = torch.where(
        torch.rand(300, generator=generator) < outliers, 30 * torch.rand(300, generator=generator).double(), y
    )
    cost = {}
    for name in ("scale_shift_l1", "scale_shift_l2", "scale_shift_adam_1e-4_1000", "median", "scale_l1"):
        scale, shift = gauge.ESTIMATORS[name](x, y)
        cost[name] = float((scale * x + shift - y).abs().sum())
    assert cost["scale_shift_l1"] <= min(cost.values()) * (1 + 1e-9)


def test_errors_by_hand_and_units() -> None:
    predicted, truth = torch.tensor([1.0, 3.0, 4.0]).double(), torch.tensor([2.0, 3.0, 2.0]).double()
    errors = depth.depth_errors(predicted, truth)
    assert errors["abs_rel"] == pytest.approx(0.5)
    assert errors["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert errors["delta_1.25"] == pytest.approx(1 / 3)
    millimetres = depth.depth_errors(1000 * predicted, 1000 * truth)
    for name in ("abs_rel", "log_rmse", "delta_1.25", "delta_1.25^2"):
        assert millimetres[name] == pytest.approx(errors[name])
    assert millimetres["rmse"] == pytest.approx(1000 * errors["rmse"])
    assert math.isnan(depth.depth_errors(truth[:0], truth[:0])["abs_rel"])


def test_boundaries() -> None:
    truth = torch.ones(2, 12, 12)
    truth[:, :, 6:] = 2.0
    valid = torch.ones_like(truth, dtype=torch.bool)
    exact, moved = depth.boundary_f1(truth, truth, valid), depth.boundary_f1(truth.roll(1, -1), truth, valid)
    assert depth.boundary_f1(7 * truth, truth, valid) == exact == 1.0
    assert moved < exact
    assert depth.boundary_f1(torch.ones_like(truth), truth, valid) == 0
    assert math.isnan(depth.boundary_f1(truth, torch.ones_like(truth), valid))


def test_temporal_alignment_error_of_truth_is_small_and_of_flicker_is_not() -> None:
    size, count = (24, 32), 3
    intrinsics = camera.intrinsics_from_focal(30.0, size).double().repeat(count, 1, 1)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, 0, 3] = 0.1 * torch.arange(count)
    wall = torch.full((count, *size), 4.0, dtype=torch.float64)
    valid = torch.ones_like(wall, dtype=torch.bool)
    assert depth.temporal_alignment_error(wall, valid, intrinsics, poses) < 1e-9
    flicker = wall * torch.tensor([1.0, 1.1, 1.0])[:, None, None]
    assert depth.temporal_alignment_error(flicker, valid, intrinsics, poses) == pytest.approx(9.5, abs=0.6)


def test_confident_half() -> None:
    confidence = torch.arange(10.0).reshape(1, 2, 5)
    mask = torch.ones(1, 2, 5, dtype=torch.bool)
    assert int(depth.confident_half(confidence, mask).sum()) in (5, 6)
    assert bool(depth.confident_half(torch.ones_like(confidence), mask).all())


# ------------------------------------------------------------------------------------------------------ trajectory


@pytest.mark.parametrize(("alignment", "rigid_free", "scale_free"), [("none", 0, 0), ("se3", 1, 0), ("sim3", 1, 1)])
def test_trajectory_gauges(alignment: trajectory.PoseAlignment, rigid_free: int, scale_free: int) -> None:
    truth = _random_path(12, 1)
    moved = pose.se3_exp(torch.tensor([1.0, -2.0, 0.5, 0.3, 0.9, -0.4], dtype=torch.float64)) @ truth
    scaled = truth.clone()
    scaled[:, :3, 3] *= 3.0
    for estimate, free in ((moved, rigid_free), (scaled, scale_free)):
        ate = trajectory.absolute_trajectory_error(estimate, truth, alignment)
        assert (ate < 1e-9) if free else (ate > 0.1)


@pytest.mark.parametrize("alignment", ["none", "se3", "sim3"])
def test_agrees_with_evo(alignment: trajectory.PoseAlignment) -> None:
    from evo.core import metrics
    from evo.core.trajectory import PosePath3D

    truth, estimate = _random_path(30, 2), _random_path(30, 2) @ pose.se3_exp(0.05 * torch.randn(30, 6).double())
    estimate[:, :3, 3] *= 1.7
    reference, path = PosePath3D(poses_se3=list(truth.numpy())), PosePath3D(poses_se3=list(estimate.numpy()))
    if alignment != "none":
        path.align(reference, correct_scale=alignment == "sim3")
    ape = metrics.APE(metrics.PoseRelation.translation_part)
    ape.process_data((reference, path))
    ours = trajectory.absolute_trajectory_error(estimate, truth, alignment)
    assert ours == pytest.approx(ape.get_statistic(metrics.StatisticsType.rmse), abs=1e-9)
    for delta in (1, 4):
        pairs = trajectory.frame_pairs(30, delta)
        relative = trajectory.relative_pose_error(estimate, truth, alignment, pairs)
        for relation, value in (
            (metrics.PoseRelation.translation_part, relative.translation),
            (metrics.PoseRelation.rotation_angle_deg, relative.rotation_deg),
        ):
            rpe = metrics.RPE(relation, delta=delta, delta_unit=metrics.Unit.frames, all_pairs=True)
            rpe.process_data((reference, path))
            assert value == pytest.approx(rpe.get_statistic(metrics.StatisticsType.rmse), abs=1e-7)


@pytest.mark.shared
def test_reference_trajectories(shared_data: Path) -> None:
    """The numbers of evo 1.38.1 in data-formats.md, section 5."""
    folder = shared_data / "trajectories"
    kitti, orb = (encodings.read_kitti_poses(folder / f"KITTI_00_{name}.txt") for name in ("gt", "ORB"))
    assert trajectory.absolute_trajectory_error(orb, kitti, "se3") == pytest.approx(1.303450, abs=1e-6)
    assert trajectory.absolute_trajectory_error(orb, kitti, "sim3") == pytest.approx(0.937709, abs=1e-6)
    assert float(trajectory.fit_alignment(orb, kitti, "sim3").scale) == pytest.approx(1.0046980764526638, abs=1e-9)
    far = trajectory.relative_pose_error(orb, kitti, "none", trajectory.path_pairs(orb, 100.0))
    assert far.translation == pytest.approx(1.193976, abs=1e-6)
    assert far.rotation_deg == pytest.approx(0.728836, abs=1e-6)
    times, truth = encodings.read_tum_trajectory(folder / "fr2_desk_groundtruth.txt")
    expected = {"fr2_desk_ORB": (2174, 0.006123), "fr2_desk_ORB_kf_mono": (118, 0.007729)}
    for name, (matches, ate) in expected.items():
        stamps, estimate = encodings.read_tum_trajectory(folder / f"{name}.txt")
        ours, theirs = trajectory.associate(stamps, times)
        assert len(ours) == matches
        assert trajectory.absolute_trajectory_error(estimate[ours], truth[theirs], "sim3") == pytest.approx(
            ate, abs=1e-6
        )
        if name == "fr2_desk_ORB":
            pairs = trajectory.frame_pairs(matches, 1)
            step = trajectory.relative_pose_error(estimate[ours], truth[theirs], "se3", pairs)
            assert step.translation == pytest.approx(0.003490, abs=1e-6)
            assert step.rotation_deg == pytest.approx(0.280519, abs=1e-6)
            assert trajectory.absolute_trajectory_error(estimate[ours], truth[theirs], "se3") == pytest.approx(
                0.008119, abs=1e-6
            )


def test_what_cannot_be_aligned_says_so() -> None:
    truth, still = _random_path(6, 3), torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    with pytest.raises(ValueError, match="never moves"):
        trajectory.absolute_trajectory_error(still, truth, "sim3")
    with pytest.raises(ValueError, match="at least 3"):
        trajectory.absolute_trajectory_error(truth[:2], truth[:2], "sim3")
    best = min(
        trajectory.rms((truth[:, :3, 3] - place).norm(dim=-1)) for place in truth[:, :3, 3] + 0.1 * torch.randn(6, 3)
    )
    assert trajectory.still_error(truth) <= best


def test_association() -> None:
    a, b = torch.tensor([0.0, 1.0, 2.0, 5.0]).double(), torch.tensor([0.004, 0.5, 1.02, 2.001, 9.0, 9.1]).double()
    ours, theirs = trajectory.associate(a, b)
    assert ours.tolist() == [0, 2] and theirs.tolist() == [0, 3]
    swapped = trajectory.associate(b, a)
    assert swapped[0].tolist() == [0, 3] and swapped[1].tolist() == [0, 2]


def test_pose_auc() -> None:
    truth = _random_path(6, 4)
    rotation, translation = trajectory.pair_angles_deg(truth, truth)
    assert trajectory.pose_auc(rotation, translation, 3) == 1.0
    backward = truth.clone()
    backward[:, :3, 3] *= -1
    backward[:, :3, :3] = torch.eye(3).double()
    forward = backward.clone()
    forward[:, :3, 3] *= -1
    assert float(trajectory.pair_angles_deg(backward, forward, signed=False)[1].max()) < 1e-6
    assert float(trajectory.pair_angles_deg(backward, forward)[1].min()) > 179
    edges = torch.tensor([0.5, 1.5, 2.5, 50.0])
    assert trajectory.pose_auc(edges, torch.zeros(4), 3) == pytest.approx((1 / 4 + 2 / 4 + 3 / 4) / 3)


# ---------------------------------------------------------------------------------------------- motion, tracks, image


def test_motion() -> None:
    truth = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 0]])
    errors = motion.endpoint_errors(truth + torch.tensor([[0.0, 0, 0], [0, 0, 0.1], [0, 0.3, 0.4]]), truth)
    assert errors.tolist() == pytest.approx([0, 0.1, 0.5], abs=1e-6)
    assert motion.share_within(errors, 0.2) == pytest.approx(2 / 3)
    mask = torch.tensor([True, True, False])
    assert motion.mask_iou(mask, mask) == 1.0
    assert motion.mask_iou(torch.tensor([True, False, True]), mask) == pytest.approx(1 / 3)
    assert math.isnan(motion.mask_iou(mask, torch.zeros(3, dtype=torch.bool)))


def test_path_pairs_agree_with_evo() -> None:
    from evo.core.filters import filter_pairs_by_path

    path = _random_path(60, 7)
    assert trajectory.path_pairs(path, 1.0).T.tolist() == [
        list(p) for p in filter_pairs_by_path(list(path.numpy()), 1.0)
    ]
    with pytest.raises(ValueError, match="too short"):
        trajectory.relative_pose_error(path, path, "none", trajectory.path_pairs(path, 1e6))


def _tapvid_by_hand(predicted, shown, truth, visible, focal) -> tuple[float, float, float]:  # type: ignore[no-untyped-def]
    """TAPVid-3D's definitions, point by point."""
    both = visible & shown
    factor = np.median(np.linalg.norm(truth[both], axis=-1)) / np.median(np.linalg.norm(predicted[both], axis=-1))
    jaccards, shares = [], []
    for pixels in (1, 2, 4, 8, 16):
        hits = misses = within = 0
        for t, n in np.ndindex(visible.shape):
            near = np.linalg.norm(factor * predicted[t, n] - truth[t, n]) < pixels * truth[t, n, 2] / focal
            hits += near and visible[t, n] and shown[t, n]
            within += near and visible[t, n]
            misses += shown[t, n] and not (visible[t, n] and near)
        jaccards.append(hits / (visible.sum() + misses))
        shares.append(within / visible.sum())
    return float(np.mean(jaccards)), float(np.mean(shares)), float((visible == shown).mean())


def test_track_scores() -> None:
    generator = torch.Generator().manual_seed(5)
    truth = torch.randn(4, 20, 3, generator=generator) + torch.tensor([0.0, 0, 6])
    visible = torch.rand(4, 20, generator=generator) > 0.3
    focal = torch.full((4,), 50.0)
    same = tracks.track_scores(3 * truth, visible, truth, visible, focal)
    assert set(same.values()) == {1.0}
    noisy = 2 * (truth + 0.3 * torch.randn(4, 20, 3, generator=generator))
    shown = visible ^ (torch.rand(4, 20, generator=generator) > 0.8)
    ours = tuple(tracks.track_scores(noisy, shown, truth, visible, focal).values())
    by_hand = _tapvid_by_hand(noisy.double().numpy(), shown.numpy(), truth.double().numpy(), visible.numpy(), 50.0)
    assert ours == pytest.approx(by_hand, abs=1e-12)
    assert tracks.track_scores(3 * truth, visible, truth, visible, focal, scaling="none")["track_apd"] < 0.5


def test_pictures() -> None:
    generator = torch.Generator().manual_seed(6)
    truth = torch.rand(2, 16, 20, 3, generator=generator)
    assert image.psnr(truth, truth) == math.inf
    assert image.psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-3)
    assert image.ssim(truth, truth) == pytest.approx(1.0)
    assert image.ssim((truth + 0.3 * torch.rand(truth.shape, generator=generator)).clamp(0, 1), truth) < 0.95
    with pytest.raises(ValueError, match="11 x 11"):
        image.ssim(truth[:, :8], truth[:, :8])
