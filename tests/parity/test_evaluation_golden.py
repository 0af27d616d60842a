"""Metrics agree with the numbers of the published scripts (golden folders) and of evo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from worldline.evaluation import gauge, trajectory
from worldline.evaluation.depth import depth_errors
from worldline.evaluation.pair import Frames, pair_up
from worldline.evaluation.parts import PointPart
from worldline.evaluation.parts_motion import FlowPart
from worldline.geometry import camera, pose, sceneflow
from worldline.scene import Cameras, Provenance, Scene4D, Video

pytestmark = pytest.mark.shared

GEO4D_NAMES = {
    "Abs Rel": "abs_rel",
    "Sq Rel": "sq_rel",
    "RMSE": "rmse",
    "Log RMSE": "log_rmse",
    "delta1.25": "delta_1.25",
    "delta1.25^2": "delta_1.25^2",
    "delta1.25^3": "delta_1.25^3",
}
GEO4D_CASES = {
    "lstsq": "scale_shift_l2",
    "lad_adam_lr1e-2_5000": "scale_shift_adam_1e-2_5000",
    "lad_adam_default_lr1e-4_1000": "scale_shift_adam_1e-4_1000",
    "lad_adam_lr1e-2_5000_align_mask": "scale_shift_adam_1e-2_5000",
    "median_scale": "median",
}


@pytest.fixture(scope="module")
def geo4d(golden_dir: Path) -> tuple[dict, dict]:
    folder = golden_dir / "geo4d"
    return json.loads((folder / "evaluation.json").read_text()), load_file(folder / "evaluation.safetensors")


@pytest.fixture(scope="module")
def motioncrafter(golden_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(golden_dir / "motioncrafter" / "metrics.safetensors")


@pytest.mark.parametrize("case", GEO4D_CASES)
def test_geo4d_depth(geo4d: tuple[dict, dict], case: str) -> None:
    numbers, arrays = geo4d
    truth, predicted = arrays["depth.gt"], arrays["depth.pred"]
    scored = (truth > 0) & (truth < 70)
    fitted = scored & (arrays["depth.align_mask"] > 0) if case.endswith("align_mask") else scored
    aligned, _ = gauge.align_depth(predicted, truth, fitted, gauge.DepthGauge(estimator=GEO4D_CASES[case]))
    errors = depth_errors(aligned.clamp(max=70.0)[scored], truth[scored].double())
    expected = numbers["depth"][case]
    for theirs, ours in GEO4D_NAMES.items():
        assert errors[ours] == pytest.approx(expected[theirs], rel=1e-5), ours


def test_geo4d_exact_lad_is_at_most_the_published_optimisers(geo4d: tuple[dict, dict]) -> None:
    numbers, arrays = geo4d
    truth, predicted = arrays["depth.gt"].double(), arrays["depth.pred"].double()
    scored = (truth > 0) & (truth < 70)

    def residual(estimator: str) -> float:
        scale, shift = gauge.ESTIMATORS[estimator](predicted[scored], truth[scored])
        return float((scale * predicted[scored] + shift - truth[scored]).abs().sum())

    exact = residual("scale_shift_l1")
    published = [entry["sum_abs_residual"] for name, entry in numbers["depth"].items() if "adam" in name]
    assert exact <= min(published)
    assert exact == pytest.approx(numbers["depth"]["lad_exact_linear_programme"]["sum_abs_residual"], rel=1e-4)
    assert residual("scale_shift_adam_1e-2_5000") >= exact


@pytest.mark.parametrize("alignment", ["sim3", "se3", "none"])
def test_geo4d_trajectory(geo4d: tuple[dict, dict], alignment: trajectory.PoseAlignment) -> None:
    numbers, arrays = geo4d
    estimated, truth, expected = (
        arrays["traj.est_cam2world"],
        arrays["traj.gt_cam2world"],
        numbers["trajectory"][alignment],
    )
    ate = trajectory.absolute_trajectory_error(estimated, truth, alignment)
    rpe = trajectory.relative_pose_error(estimated, truth, alignment, trajectory.frame_pairs(len(truth), 1))
    assert ate == pytest.approx(expected["ATE_rmse"], abs=1e-9)
    assert rpe.translation == pytest.approx(expected["RPE_trans_rmse"], abs=1e-9)
    assert rpe.rotation_deg == pytest.approx(expected["RPE_rot_deg_rmse"], abs=1e-9)
    if alignment != "none":
        fitted = trajectory.fit_alignment(estimated, truth, alignment)
        assert float(fitted.scale) == pytest.approx(expected["s"], abs=1e-9)
        assert torch.allclose(fitted.translation, torch.tensor(expected["t"], dtype=torch.float64), atol=1e-9)


def _scene(
    points: torch.Tensor, flow: torch.Tensor, valid: torch.Tensor, flow_valid: torch.Tensor, poses: torch.Tensor
) -> Scene4D:
    count, height, width = valid.shape
    flow_valid = flow_valid.clone()
    flow_valid[-1] = False
    intrinsics = camera.intrinsics_from_focal(20.0, (height, width)).repeat(count, 1, 1)
    return Scene4D(
        video=Video(
            frames=torch.zeros(count, height, width, 3, dtype=torch.uint8),
            timestamps=torch.arange(count, dtype=torch.float64),
        ),
        points=points,
        valid=valid,
        scene_flow=flow,
        flow_valid=flow_valid,
        cameras=Cameras(intrinsics=intrinsics, cam2world=poses, size=(height, width)),
        provenance=Provenance(system="golden"),
    )


def _truth(arrays: dict[str, torch.Tensor]) -> Scene4D:
    poses = arrays["in.gt.camera_pose"].double()
    local, flow = arrays["in.gt.point_map_cam"].double(), arrays["in.gt.scene_flow_cam"].double()
    following = torch.cat([poses[1:], poses[-1:]])
    valid = arrays["in.gt.valid_mask"] > 0
    world_flow = sceneflow.camera_to_world_flow(local, flow, poses, following)
    return _scene(pose.transform(poses, local), world_flow, valid, valid & (arrays["in.gt.deform_mask"] > 0), poses)


def _prediction(arrays: dict[str, torch.Tensor], kind: str) -> Scene4D:
    """A prediction whose cameras stand still: world (or camera-frame) points as they are."""
    points, flow = arrays[f"in.{kind}.point_map"].double(), arrays[f"in.{kind}.scene_flow"].double()
    everywhere = torch.ones(points.shape[:3], dtype=torch.bool)
    still = torch.eye(4, dtype=torch.float64).repeat(len(points), 1, 1)
    return _scene(points, flow, everywhere, everywhere, still)


CASES = {
    "world": ("pred_world", {}),
    "world_weighted": ("pred_world", {"weight": "inverse_depth"}),
    "world_noflow": ("pred_world", {}),
    "world_no_deform_mask": ("pred_world", {}),
    "world_lowres": ("pred_low", {}),
    "camera": ("pred_cam", {}),
    "camera_weighted": ("pred_cam", {"weight": "inverse_depth"}),
    "camera_static_pose": ("pred_cam", {}),
    "camera_external_pose": ("pred_cam", {}),
}


def _numbers(arrays: dict[str, torch.Tensor], case: str, target: str, mask: str) -> list[float]:
    kind, settings = CASES[case]
    points = PointPart(**settings)
    flow = FlowPart(points=points, target=target, mask=mask, static_pose=case == "camera_static_pose")
    truth, prediction = _truth(arrays), _prediction(arrays, kind)
    if case == "world_noflow":
        prediction = replace(prediction, scene_flow=None, flow_valid=None)
    placement = "truth" if kind == "pred_cam" else "estimated"
    pair = pair_up(prediction, truth, Frames(count=25, count_with_flow=8), "bilinear_corners", placement)
    if case == "camera_external_pose":
        external = pose.relative_to_first(arrays["in.external_pose"].double())[: len(pair.truth)]
        pair = replace(pair, placement=external)
    values = points.values(pair)[0]
    if case == "world_noflow":
        return [*values.values(), -1, -1, -1, -1, -1]
    return [*values.values(), *flow.values(pair)[0].values()]


@pytest.mark.parametrize("case", CASES)
def test_motioncrafter_as_published(motioncrafter: dict[str, torch.Tensor], case: str) -> None:
    mask = "valid" if case == "world_no_deform_mask" else "flow_valid"
    numbers = torch.tensor(_numbers(motioncrafter, case, "camera_relative", mask), dtype=torch.float64)
    torch.testing.assert_close(numbers, motioncrafter[f"out.{case}"], atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize(
    ("name", "case", "mask"),
    [
        ("world", "world", "flow_valid"),
        ("world_weighted", "world_weighted", "flow_valid"),
        ("camera", "camera", "flow_valid"),
        ("world_valid_mask_only", "world", "valid"),
    ],
)
def test_motioncrafter_corrected_flow(motioncrafter: dict[str, torch.Tensor], name: str, case: str, mask: str) -> None:
    numbers = torch.tensor(_numbers(motioncrafter, case, "world", mask)[4:], dtype=torch.float64)
    torch.testing.assert_close(numbers, motioncrafter[f"out.corrected.{name}"], atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("case", ["world", "world_weighted", "camera", "camera_weighted"])
def test_motioncrafter_scale_and_shift(motioncrafter: dict[str, torch.Tensor], case: str) -> None:
    kind, settings = CASES[case]
    placement = "truth" if kind == "pred_cam" else "estimated"
    pair = pair_up(_prediction(motioncrafter, kind), _truth(motioncrafter), Frames(count=8), "nearest", placement)
    scale, shift = PointPart(**settings).gauge(pair)
    assert scale == pytest.approx(float(motioncrafter[f"out.align.{case}.scale"]), rel=2e-5)
    assert torch.allclose(shift.float(), motioncrafter[f"out.align.{case}.shift"], atol=2e-5)
    world = torch.where(pair.mask[..., None], motioncrafter["out.align.gt_world"].double(), 0.0)
    assert torch.allclose(pair.truth_points, world, atol=2e-5)
