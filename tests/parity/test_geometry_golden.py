"""Geometry against numbers made with the original implementations (the golden folder's README says how)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from worldline.geometry import camera, fit, normalize, pose, raymap

pytestmark = pytest.mark.shared


def _load(golden_dir: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    extra = golden_dir / f"{name}.json"
    return load_file(golden_dir / f"{name}.safetensors"), json.loads(extra.read_text()) if extra.exists() else {}


def test_geo4d_point_and_disparity_normalisation(golden_dir: Path) -> None:
    g, _ = _load(golden_dir, "geo4d/geometry")
    points, valid = g["norm.points_in"], g["norm.valid"].bool()
    box = normalize.PercentileBox.fit(points, valid)
    torch.testing.assert_close(
        torch.stack([box.scale, box.low]).double(), g["norm.points_scale_lo"], atol=1e-6, rtol=1e-6
    )
    encoded = box.apply(points, valid)
    torch.testing.assert_close(encoded, g["norm.points_out"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(box.to_unit(encoded), g["norm.points_denormalised"], atol=1e-6, rtol=1e-6)
    disparity = 1 / (points[..., 2] + 1e-8)
    span = normalize.PercentileDisparity.fit(disparity, valid)
    torch.testing.assert_close(
        torch.stack([span.scale, span.low]).double(), g["norm.disparity_scale_lo"], atol=1e-6, rtol=1e-6
    )
    value = span.apply(disparity, valid)
    torch.testing.assert_close(value, g["norm.disparity_out"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(span.to_unit(value), g["norm.disparity_denormalised"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", ["constant", "halfpixel", "zoom"])
def test_geo4d_cameras_to_ray_maps(golden_dir: Path, case: str) -> None:
    g, _ = _load(golden_dir, "geo4d/geometry")
    height, width = g[f"ray.{case}.dir"].shape[1:3]
    focal = g["ray.focals_zoom"] if case == "zoom" else torch.full((8,), 30.0)
    k = camera.intrinsics_from_focal(focal, (height, width))
    offset = -0.5 if case == "halfpixel" else 0.0  # the published principal point is (W/2, H/2)
    k[:, 0, 2], k[:, 1, 2] = width / 2 + offset, height / 2 + offset
    direction, moment = raymap.from_cameras(k, g["ray.true_cam2world"], (height, width))
    torch.testing.assert_close(direction, g[f"ray.{case}.dir"].float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(moment, g[f"ray.{case}.moment"].float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("case", ["constant", "halfpixel", "zoom", "noisy"])
def test_geo4d_published_ray_cameras(golden_dir: Path, case: str) -> None:
    g, _ = _load(golden_dir, "geo4d/geometry")
    found = raymap.to_cameras_procrustes(g[f"ray.{case}.dir"].float(), g[f"ray.{case}.moment"].float())
    want = g[f"ray.{case}.upstream_cam2world"]
    assert float(pose.rotation_angle_deg(found[:, :3, :3].double(), want[:, :3, :3].double()).max()) < 2e-3
    torch.testing.assert_close(found[:, :3, 3], want[:, :3, 3], atol=2e-5, rtol=0)


def test_geo4d_homography_cameras_are_not_fooled_by_zoom(golden_dir: Path) -> None:
    g, info = _load(golden_dir, "geo4d/geometry")
    truth = g["ray.true_cam2world"].double()
    k, found = raymap.to_cameras(g["ray.zoom.dir"].double(), g["ray.zoom.moment"].double())
    error = pose.rotation_angle_deg(found[:, :3, :3], truth[:, :3, :3])
    assert float(error.max()) < 0.05, "float16 rays determine the rotation much better than that"
    assert max(info["ray.zoom"]["rot_err_deg"]) > 0.1, "the published rotation is biased on the same rays"
    torch.testing.assert_close(k[:, 0, 0].float(), g["ray.focals_zoom"], atol=0, rtol=2e-3)
    torch.testing.assert_close(found[:, :3, 3], truth[:, :3, 3], atol=1e-4, rtol=0)


def test_geo4d_focal_and_shift(golden_dir: Path) -> None:
    g, info = _load(golden_dir, "geo4d/geometry")
    for case in info["focal_cases"]:
        points, mask = g[f"focal.{case['case']}.points"].clone(), g[f"focal.{case['case']}.mask"].bool()
        points[..., 2] -= case["z_subtracted"] if case["z_subtracted"] else 0.0
        centre = {"half": (case["W"] / 2 - 0.5, case["H"] / 2 - 0.5), "integer": (case["W"] / 2, case["H"] / 2)}
        for convention, answer in case["converged"].items():
            focal, shift = camera.focal_shift_from_pointmap(points, mask, centre[convention])
            assert float(focal) == pytest.approx(answer["focal_px"], rel=2e-4)
            assert float(shift) == pytest.approx(answer["shift"], abs=1e-4)


def _depth_case(golden_dir: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    g, info = _load(golden_dir, "geo4d/evaluation")
    seen = (g["depth.gt"] > 0) & (g["depth.gt"] < 70)
    return g["depth.pred"], g["depth.gt"], seen.to(g["depth.pred"].dtype), info["depth"]


def test_geo4d_depth_fits(golden_dir: Path) -> None:
    pred, gt, w, want = _depth_case(golden_dir)
    residual = lambda s, t: float((w.double() * (s.double() * pred.double() + t.double() - gt.double()).abs()).sum())  # noqa: E731
    s, t = fit.scale_shift_l2(pred, gt, w)
    assert float(s) == pytest.approx(want["lstsq"]["s"], rel=1e-5)
    assert float(t) == pytest.approx(want["lstsq"]["t"], rel=1e-5)
    exact = want["lad_exact_linear_programme"]
    s, t = fit.scale_shift_l1(pred, gt, w)
    assert residual(s, t) <= exact["sum_abs_residual"] * (1 + 1e-6)
    assert residual(s, t) <= want["lad_adam_lr1e-2_5000"]["sum_abs_residual"]
    aligned = fit.scale_median(pred, gt, w) * pred[w > 0]
    abs_rel = ((aligned.clamp(max=70) - gt[w > 0]).abs() / gt[w > 0]).mean()
    assert float(abs_rel) == pytest.approx(want["median_scale"]["Abs Rel"], rel=1e-4)


@pytest.mark.parametrize(
    "name,rate,iterations",
    [
        ("lad_adam_lr1e-2_5000", 1e-2, 5000),
        ("lad_adam_default_lr1e-4_1000", 1e-4, 1000),
        ("lad_adam_lr1e-2_5000_align_mask", 1e-2, 5000),
    ],
)
def test_geo4d_published_adam_fits(golden_dir: Path, name: str, rate: float, iterations: int) -> None:
    pred, gt, w, info = _depth_case(golden_dir)
    if name.endswith("align_mask"):
        w = w * _load(golden_dir, "geo4d/evaluation")[0]["depth.align_mask"]
    s, t = fit.scale_shift_adam(pred, gt, w, learning_rate=rate, iterations=iterations)
    residual = (w.double() * (float(s) * pred.double() + float(t) - gt.double()).abs()).sum()
    if not name.endswith("align_mask"):  # there, the stored residual is over all valid pixels
        assert float(residual) == pytest.approx(info[name]["sum_abs_residual"], rel=1e-4)
    # the stopping rule fires on float32 rounding, so another machine may stop elsewhere in the flat valley
    assert float(s) == pytest.approx(info[name]["s"], abs=2e-2)
    assert float(t) == pytest.approx(info[name]["t"], abs=5e-2)


def test_geo4d_trajectory_similarity(golden_dir: Path) -> None:
    g, info = _load(golden_dir, "geo4d/evaluation")
    source, target = g["traj.est_cam2world"][:, :3, 3], g["traj.gt_cam2world"][:, :3, 3]
    for name, with_scale in (("sim3", True), ("se3", False)):
        want, found = info["trajectory"][name], fit.umeyama(source, target, with_scale=with_scale)
        torch.testing.assert_close(found.rotation, torch.tensor(want["R"], dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(found.translation, torch.tensor(want["t"], dtype=torch.float64), atol=1e-9, rtol=0)
        assert float(found.scale) == pytest.approx(want["s"], abs=1e-9)
        ate = (found.apply(source) - target).square().sum(-1).mean().sqrt()
        assert float(ate) == pytest.approx(want["ATE_rmse"], abs=1e-9)


def test_motioncrafter_scale_shift_fit(golden_dir: Path) -> None:
    g, _ = _load(golden_dir, "motioncrafter/metrics")
    target = g["out.align.gt_world"]
    frames = len(target)
    mask = g["in.gt.valid_mask"][:frames].bool()
    depth = g["in.gt.point_map_cam"][:frames][..., 2]
    for name, weight in (("world", None), ("world_weighted", 1 / (depth + 1e-6))):
        w = None if weight is None else weight[mask]
        s, b = fit.scale_shift3_l2(g["in.pred_world.point_map"][:frames][mask], target[mask], w)
        torch.testing.assert_close(s[None], g[f"out.align.{name}.scale"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(b, g[f"out.align.{name}.shift"], atol=1e-5, rtol=1e-5)


def test_motioncrafter_world_normalisation(golden_dir: Path) -> None:
    g, _ = _load(golden_dir, "motioncrafter/transforms")
    points = g["out.world.point_map"].permute(0, 2, 3, 1)
    valid = g["in.valid_mask"] > 0.5
    for suffix, centred in (("norm", True), ("norm_noshift", False)):
        chosen = normalize.MeanDistance.fit(points, valid, centred=centred)
        torch.testing.assert_close(chosen.scale[None], g[f"out.{suffix}.scale"], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            chosen.apply_pose(g["out.pose_rel"]), g[f"out.{suffix}.camera_pose"], atol=1e-6, rtol=1e-5
        )
    chosen = normalize.MeanDistance.fit(points, valid)
    torch.testing.assert_close(chosen.shift, g["out.norm.shift"], atol=1e-6, rtol=1e-5)


def test_more4d_depth_guided_motion(golden_dir: Path) -> None:
    g, _ = _load(golden_dir, "more4d/motion_normalisation")
    tracks = g["coords"].permute(1, 2, 3, 0)
    published = normalize.DepthGuidedMotion(reference=tracks[0], focal=g["fxfy_published"])
    torch.testing.assert_close(published.apply(tracks), g["published_z"].permute(1, 2, 3, 0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(published.invert(published.apply(tracks)), tracks, atol=1e-5, rtol=1e-5)
    exact = normalize.DepthGuidedMotion.fit(tracks[0])
    torch.testing.assert_close(exact.focal, g["fxfy_exact_normalised"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(exact.apply(tracks), g["exact_z"].permute(1, 2, 3, 0), atol=1e-4, rtol=1e-4)
    broken = g["bad.coords"].permute(1, 2, 3, 0)
    found = normalize.DepthGuidedMotion(reference=broken[0], focal=g["fxfy_published"]).apply(broken)
    torch.testing.assert_close(found, g["bad.published_z"].permute(1, 2, 3, 0), atol=1e-5, rtol=1e-5, equal_nan=True)
