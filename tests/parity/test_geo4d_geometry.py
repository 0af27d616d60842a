"""Geo4D's pictures of scenes and what is read back from them, against the published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from worldline.geometry import pose
from worldline.systems.geo4d import representation as rep

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, Tensor]:
    return load_file(golden_dir / "geo4d" / "geometry.safetensors")


def cameras(count: int) -> tuple[Tensor, Tensor]:
    k = torch.tensor([[30.0, 0, 15.5], [0, 30, 9.5], [0, 0, 1]])
    return k.expand(1, count, 3, 3), torch.eye(4).expand(1, count, 4, 4)


def test_geo4d_pictures_of_points_and_disparity(golden: dict[str, Tensor]) -> None:
    points, valid = golden["norm.points_in"], golden["norm.valid"].bool()
    pictures = rep.to_pictures(points[None], valid[None], *cameras(len(points)))
    close = {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(rep.channels_last(pictures.points)[0], golden["norm.points_out"], **close)
    torch.testing.assert_close(pictures.disparity[0].mean(1), golden["norm.disparity_out"], **close)
    for fitted, name in ((pictures.boxes[0], "points"), (pictures.ranges[0], "disparity")):
        found = torch.stack([fitted.scale, fitted.low]).double()
        torch.testing.assert_close(found, golden[f"norm.{name}_scale_lo"], **close)
    torch.testing.assert_close(rep.read_points(pictures.points[0]), golden["norm.points_denormalised"], **close)
    torch.testing.assert_close(
        rep.read_disparity(pictures.disparity[0]), golden["norm.disparity_denormalised"], **close
    )


@pytest.mark.parametrize("program", ["evaluation", "demo"])
def test_geo4d_confidence_and_masks(golden: dict[str, Tensor], program: str) -> None:
    invalid = rep.invalid_points(rep.channels_first(golden["conf.points"]), program)
    assert torch.equal(invalid, golden[f"conf.invalid_{program}"].bool())
    found = rep.confidence_of(golden["conf.raw"], invalid)
    torch.testing.assert_close(found, golden[f"conf.weight_{program}"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", ["constant", "halfpixel", "zoom", "noisy"])
def test_geo4d_published_ray_cameras(golden: dict[str, Tensor], case: str) -> None:
    pictures = (rep.channels_first(golden[f"ray.{case}.{name}"].float()) for name in ("dir", "moment"))
    _, found = rep.ray_cameras(rep.read_rays(*pictures), "published")
    want = golden[f"ray.{case}.upstream_cam2world"].double()
    assert float(pose.rotation_angle_deg(found[:, :3, :3].double(), want[:, :3, :3]).max()) < 2e-3
    torch.testing.assert_close(found[:, :3, 3].double(), want[:, :3, 3], atol=2e-5, rtol=0)


def test_geo4d_paper_ray_cameras_know_the_zoom(golden: dict[str, Tensor]) -> None:
    pictures = (rep.channels_first(golden[f"ray.zoom.{name}"].float()) for name in ("dir", "moment"))
    k, found = rep.ray_cameras(rep.read_rays(*pictures), "paper")
    truth = golden["ray.true_cam2world"].double()
    assert float(pose.rotation_angle_deg(found[:, :3, :3].double(), truth[:, :3, :3]).max()) < 0.06
    torch.testing.assert_close(k[:, 0, 0], golden["ray.focals_zoom"], rtol=3e-3, atol=0)


def test_geo4d_shift_of_the_first_camera(golden_dir: Path, golden: dict[str, Tensor]) -> None:
    cases = json.loads((golden_dir / "geo4d" / "geometry.json").read_text())["focal_cases"]
    for case in cases:
        points, mask = golden[f"focal.{case['case']}.points"], golden[f"focal.{case['case']}.mask"].bool()
        subtracted = case["z_subtracted"] or 0.0
        points = points - points.new_tensor([0.0, 0.0, subtracted])
        focal, shift = rep.first_camera_shift(points, mask.float())
        want = case["converged"]["half"]  # integer pixels about ((W - 1) / 2, (H - 1) / 2) are half pixels about W / 2
        assert float(focal) == pytest.approx(want["focal_px"], rel=2e-4)
        assert float(shift) == pytest.approx(want["shift"], abs=1e-4)
