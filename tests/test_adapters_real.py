"""Real excerpts: cameras, depth, flow and axes agree with each other by reprojection; the known traps are pinned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldline.data.adapters import convert, encodings
from worldline.geometry import camera, pointmap, pose
from worldline.scene import Scene4D

pytestmark = pytest.mark.shared


def agreement(scene: Scene4D, a: int, b: int, cam2world: Tensor | None = None) -> float:
    """Share of the pixels of frame a that, moved into frame b, have its depth within 5 % (where they are seen in b)."""
    assert scene.cameras is not None
    poses = scene.cameras.cam2world if cam2world is None else cam2world
    here, there = (pointmap.scene_depth(scene.select([t]))[0].double() for t in (a, b))
    k = scene.cameras.intrinsics
    world = pose.transform(poses[a], pointmap.from_depth(here, k[a]))
    local = pose.transform(pose.inverse(poses[b]), world)
    uv, (height, width) = camera.project(local, k[b]).round().long(), scene.size
    inside = scene.valid[a] & (local[..., 2] > 0) & (uv >= 0).all(-1) & (uv[..., 0] < width) & (uv[..., 1] < height)
    column, row = uv[inside].unbind(-1)
    known = scene.valid[b][row, column]
    z, seen = local[..., 2][inside][known], there[row, column][known]
    assert len(z) > 1000, "too little overlap to judge"
    return float(((z - seen).abs() <= 0.05 * seen).double().mean())


def check_first_camera_world(scene: Scene4D) -> None:
    """World = first camera, and every valid point lies on the ray of its pixel."""
    assert scene.cameras is not None and scene.provenance.system == "truth" and scene.scale == "metric"
    torch.testing.assert_close(scene.cameras.cam2world[0], torch.eye(4, dtype=torch.float64))
    rotations = scene.cameras.cam2world[:, :3, :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand_as(rotations))
    last = len(scene) - 1
    local = pointmap.to_camera(scene.points[last], scene.cameras.cam2world[last])
    error = camera.project(local, scene.cameras.intrinsics[last]) - camera.pixel_grid(scene.size)
    assert float(error[scene.valid[last]].abs().max()) < 0.02
    assert (scene.points[~scene.valid] == 0).all()


@pytest.fixture(scope="module")
def tartanair(shared_data: Path) -> Scene4D:
    return next(convert("tartanair", shared_data / "tartanair"))


def test_tartanair_depth_agrees_across_fourteen_frames(tartanair: Scene4D) -> None:
    assert len(tartanair) == 15 and tartanair.size == (480, 640)
    check_first_camera_world(tartanair)
    assert agreement(tartanair, 0, 14) > 0.99


@pytest.mark.parametrize("permuted,at_most", [(False, 0.5), (True, 0.05)])
def test_tartanair_negating_tz_and_qz_is_wrong(
    tartanair: Scene4D, shared_data: Path, permuted: bool, at_most: float
) -> None:
    """The published converter's axes, as they are and with the columns permuted, against 0.999 for the right ones."""
    rows = encodings.read_numbers(shared_data / "tartanair" / "pose_left_045_059.txt")
    rows[:, [2, 5]] *= -1
    wrong = encodings.poses_from_translation_xyzw(rows)
    if permuted:
        wrong[:, :3, :3] = wrong[:, :3, [1, 2, 0]]
    assert agreement(tartanair, 0, 14, pose.relative_to_first(wrong)) < at_most


@pytest.fixture(scope="module")
def hololens(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene4D:
    """The first twelve frames only: reading all sixty takes seconds."""
    root, source = tmp_path_factory.mktemp("hololens"), shared_data / "hololens"
    for folder in ("images", "depth"):
        (root / folder).mkdir()
        for number in range(3, 15):
            (root / folder / f"{number:05d}.png").symlink_to(source / folder / f"{number:05d}.png")
    for name in ("K.txt", "poses_first60.txt"):
        (root / name).symlink_to(source / name)
    return next(convert("hololens", root))


def test_hololens_depth_agrees_over_a_wide_baseline(hololens: Scene4D) -> None:
    assert len(hololens) == 12 and hololens.size == (360, 540)
    check_first_camera_world(hololens)
    # forwards: seen backwards (11 to 6), 5 % of the points are rightly hidden behind what had left the image
    assert min(agreement(hololens, 0, 1), agreement(hololens, 0, 5), agreement(hololens, 6, 11)) > 0.98
    assert 0.3 < float(hololens.valid.float().mean()) < 0.9, "holes are holes"


def test_hololens_image_k_has_pose_line_k_minus_3(hololens: Scene4D, shared_data: Path) -> None:
    rows = encodings.read_numbers(shared_data / "hololens" / "poses_first60.txt").reshape(-1, 4, 4)
    right = agreement(hololens, 2, 7)
    for line_of_first in (1, 2, 3):
        shifted = pose.relative_to_first(rows[line_of_first : line_of_first + 12])
        assert agreement(hololens, 2, 7, shifted) < right - 0.005


def test_kitti_odometry_has_cameras_and_no_points(shared_data: Path) -> None:
    (scene,) = convert("kitti_odometry", shared_data / "kitti_odometry")
    assert scene.cameras is not None
    assert len(scene) == 51 and not scene.valid.any() and (scene.points == 0).all()
    assert scene.provenance.settings["stereo_baseline_m"] == pytest.approx(0.537, abs=1e-3)
    path = scene.cameras.cam2world[:, :3, 3].diff(dim=0).norm(dim=-1).sum()
    assert 55 < float(path) < 65 and float(scene.cameras.cam2world[-1, 2, 3]) > 55, "a minute of metres along z"
    assert float(scene.cameras.intrinsics[0, 0, 2]) == pytest.approx(601.8873)


def test_deepdeform_points_plus_flow_lie_on_the_second_depth_map(shared_data: Path) -> None:
    (scene,) = convert("deepdeform", shared_data / "deepdeform")
    check_first_camera_world(scene)
    assert scene.scene_flow is not None and scene.flow_valid is not None and scene.cameras is not None
    assert not scene.flow_valid[1].any() and int(scene.flow_valid[0].sum()) > 50_000
    there = (scene.points[0] + scene.scene_flow[0])[scene.flow_valid[0]]
    uv = camera.project(there, scene.cameras.intrinsics[1])
    column, row = uv.round().long().unbind(-1)
    inside = (column >= 0) & (row >= 0) & (column < scene.size[1]) & (row < scene.size[0])
    seen = scene.points[1][row[inside], column[inside], 2]
    known = seen > 0
    error = (there[inside, 2] - seen).abs()[known] / seen[known]
    assert float((error < 0.05).float().mean()) > 0.99 and float(known.float().mean()) > 0.95
    # and its projection is the stored optical flow
    flow_px = (camera.pixel_grid(scene.size) + scene.extras["optical_flow"][0])[scene.flow_valid[0]]
    assert float((uv - flow_px).norm(dim=-1).median()) < 1.0
    assert float(scene.extras["object_id"][0][scene.flow_valid[0]].float().mean()) > 0.9, "flow is of the shirt"


def test_flyingthings_depth_is_upright_and_in_the_units_of_its_camera(shared_data: Path) -> None:
    scenes = list(convert("flyingthings", shared_data / "flyingthings"))
    assert [len(scene) for scene in scenes] == [1, 1]
    for number, scene in enumerate(scenes, 1):
        check_first_camera_world(scene)
        disparity = encodings.read_pfm(shared_data / "flyingthings" / f"disp{number}.pfm")
        torch.testing.assert_close(scene.points[0, ..., 2] * disparity, torch.full_like(disparity, 1050.0))
        # the rows of a pfm run upwards: depth edges must fall onto image edges, and do not when flipped
        image = scene.video.rgb()[0].mean(-1)
        edges = (image[1:] - image[:-1]).abs()[:, :-1] + (image[:, 1:] - image[:, :-1]).abs()[:-1]
        step = pointmap.depth_edges(scene.points[0, ..., 2], 0.2)[:-1, :-1]
        upright, flipped = edges[step].mean(), edges.flip(0)[step].mean()
        assert upright > 1.5 * flipped


def test_slambook_sets_agree_also_with_a_mirrored_camera_frame(shared_data: Path) -> None:
    real, synthetic = convert("slambook", shared_data / "slambook2")
    for scene in (real, synthetic):
        check_first_camera_world(scene)
        assert scene.cameras is not None and float(scene.cameras.intrinsics[0, 1, 1]) > 0
    assert agreement(real, 3, 4) > 0.95
    assert agreement(synthetic, 0, 1) > 0.95 and agreement(synthetic, 3, 4) > 0.95
    # without mirroring the poses the same images disagree
    rows = encodings.read_numbers(shared_data / "slambook2" / "ch12_dense_rgbd" / "pose.txt")
    plain = pose.relative_to_first(encodings.poses_from_translation_xyzw(rows))
    assert agreement(synthetic, 0, 1, plain) < 0.5


def test_kitti_2015_flow_warps_the_second_image_onto_the_first(shared_data: Path) -> None:
    folder = shared_data / "kitti15_encodings"
    flow, valid = encodings.read_kitti_flow(folder / "results/flow/000139_10.png")
    disparity, known = encodings.read_kitti_disparity(folder / "results/disp_0/000139_10.png")
    first, second = (
        encodings.read_rgb(folder / f"kitti_img/image_2/000139_{n}.png").float() / 255 for n in ("10", "11")
    )
    height, width = flow.shape[:2]

    def error(by: Tensor) -> float:
        uv = (camera.pixel_grid((height, width)) + by).round().long()
        inside = valid & (uv >= 0).all(-1) & (uv[..., 0] < width) & (uv[..., 1] < height)
        column, row = uv[inside].unbind(-1)
        return float((first[inside] - second[row, column]).abs().mean())

    assert error(flow) < 0.7 * error(torch.zeros_like(flow)) and error(flow) < 0.7 * error(flow.flip(-1))
    assert known.all() and 0.5 < float(disparity.min()) and float(disparity.max()) < 80
