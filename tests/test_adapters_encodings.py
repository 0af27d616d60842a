"""File encodings: what is written by the format's rules is read back, and damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from worldline.data.adapters import assemble, convert, encodings, tum
from worldline.geometry import camera, pose, sceneflow


def write_pfm(path: Path, values: np.ndarray, big_endian: bool = False) -> None:
    kind = "PF" if values.ndim == 3 else "Pf"
    header = f"{kind}\n{values.shape[1]} {values.shape[0]}\n{1.0 if big_endian else -1.0}\n"
    body = np.ascontiguousarray(values[::-1]).astype(">f4" if big_endian else "<f4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode() + body)


def write_png16(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


@pytest.mark.parametrize("shape", [(4, 7), (4, 7, 3)])
@pytest.mark.parametrize("big_endian", [False, True])
def test_pfm_is_stored_bottom_up(tmp_path: Path, shape: tuple[int, ...], big_endian: bool) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    write_pfm(tmp_path / "a.pfm", values, big_endian)
    assert torch.equal(encodings.read_pfm(tmp_path / "a.pfm"), torch.from_numpy(values))


def test_flo_and_sintel_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tag = np.float32(202021.25).tobytes()
    flow = rng.normal(size=(3, 5, 2)).astype(np.float32)
    flow[1, 2] = 1e10
    (tmp_path / "a.flo").write_bytes(tag + np.array([5, 3], np.int32).tobytes() + flow.tobytes())
    found, valid = encodings.read_flo(tmp_path / "a.flo")
    assert torch.equal(found, torch.from_numpy(flow)) and int((~valid).sum()) == 1 and not valid[1, 2]
    depth = rng.random((3, 5)).astype(np.float32)
    (tmp_path / "a.dpt").write_bytes(tag + np.array([5, 3], np.int32).tobytes() + depth.tobytes())
    assert torch.equal(encodings.read_dpt(tmp_path / "a.dpt"), torch.from_numpy(depth))
    k = camera.intrinsics_from_focal(torch.tensor(9.0, dtype=torch.float64), (3, 5))
    cam2world = pose.se3_exp(torch.randn(6, dtype=torch.float64))
    extrinsic = pose.inverse(cam2world)[:3].numpy()
    (tmp_path / "a.cam").write_bytes(tag + k.numpy().tobytes() + extrinsic.tobytes())
    found_k, found_pose = encodings.read_sintel_camera(tmp_path / "a.cam")
    assert torch.equal(found_k, k)
    torch.testing.assert_close(found_pose, cam2world)


def test_deepdeform_flow_is_channel_first_and_minus_infinity_is_unknown(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    values[:, 2, 1] = -np.inf
    header = np.array([6, 4, 3], "<i4").tobytes()
    (tmp_path / "a.sflow").write_bytes(header + values.tobytes())
    flow, valid = encodings.read_deepdeform_flow(tmp_path / "a.sflow")
    assert not valid[2, 1] and int(valid.sum()) == 23 and (flow[2, 1] == 0).all()
    assert torch.equal(flow[0, 5], torch.from_numpy(values[:, 0, 5]))
    (tmp_path / "short.sflow").write_bytes(header + values.tobytes()[:-4])
    with pytest.raises(ValueError, match="bytes"):
        encodings.read_deepdeform_flow(tmp_path / "short.sflow")


def test_kitti_flow_is_decoded_in_rgb_order(tmp_path: Path) -> None:
    import cv2

    flow = np.array([[[1.5, -2.25], [0.0, 300.0]]])
    rgb = np.concatenate([flow * 64 + 32768, [[[1], [0]]]], -1).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), np.ascontiguousarray(rgb[..., ::-1]))
    found, valid = encodings.read_kitti_flow(tmp_path / "a.png")
    assert valid.tolist() == [[True, False]] and found[0, 0].tolist() == [1.5, -2.25] and found[0, 1].tolist() == [0, 0]


def test_wrong_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"P6 2 2 255 " + bytes(12))
    for reader in (encodings.read_pfm, encodings.read_flo, encodings.read_dpt, encodings.read_sintel_camera):
        with pytest.raises(ValueError, match=str(tmp_path)):
            reader(tmp_path / "a")
        with pytest.raises(FileNotFoundError, match="missing"):
            reader(tmp_path / "nothing")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "grey8.png")
    with pytest.raises(ValueError, match="16-bit"):
        encodings.read_depth_image(tmp_path / "grey8.png", 1000.0)
    with pytest.raises(ValueError, match="Unknown data set"):
        next(convert("nonsense", tmp_path))
    for name in ("deepdeform", "flyingthings", "hololens", "kitti_odometry", "slambook", "tartanair", "tum"):
        with pytest.raises(FileNotFoundError):
            next(convert(name, tmp_path))


def test_poses_from_text_have_the_scalar_last(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("# comment\n1.5 1 2 3 0 0 0.70710678 0.70710678\n")
    times, poses = encodings.read_tum_trajectory(tmp_path / "t.txt")
    assert times.tolist() == [1.5] and poses[0, :3, 3].tolist() == [1, 2, 3]
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)  # 90 degrees about z
    torch.testing.assert_close(poses[0, :3, :3], quarter, atol=1e-7, rtol=0)
    with pytest.raises(ValueError, match="12"):
        encodings.read_kitti_poses(tmp_path / "t.txt")


def test_poses_rounded_in_text_become_rotations_and_nonsense_is_refused() -> None:
    exact = pose.se3_exp(torch.randn(3, 6, dtype=torch.float64))
    rounded = (exact * 1e5).round() / 1e5
    repaired = assemble.orthonormal(rounded)
    torch.testing.assert_close(repaired, exact, atol=2e-5, rtol=0)
    rotation = repaired[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand(3, 3, 3))
    with pytest.raises(ValueError, match="not a rotation"):
        assemble.orthonormal(torch.diag(torch.tensor([1.0, 1, -1, 1], dtype=torch.float64))[None])


def test_flyingthings_layout_of_a_static_world_has_no_world_flow(tmp_path: Path) -> None:
    """A plane seen by three moving cameras, written by the format's rules (Blender axes, disparity change, flow)."""
    size, frames = (12, 16), 3
    k = torch.tensor([[1050.0, 0, 479.5], [0, 1050, 269.5], [0, 0, 1]], dtype=torch.float64)
    xi = torch.randn(frames, 6, dtype=torch.float64) * torch.tensor([0.05, 0.05, 0.05, 0.01, 0.01, 0.01])
    cam2world = pose.se3_exp(xi)
    rays = camera.camera_rays(k, size)
    depth, points = [], []
    for t in range(frames):  # plane z + 0.3 x = 20 of the world
        normal = torch.tensor([0.3, 0, 1.0], dtype=torch.float64)
        z = (20 - cam2world[t, :3, 3] @ normal) / (pose.rotate(cam2world[t, :3, :3], rays) @ normal)
        depth.append(z)
        points.append(pose.transform(cam2world[t], rays * z[..., None]))
    lines = []
    for t in range(frames):
        name = f"{t + 6:04d}"
        image = tmp_path / f"frames_cleanpass/a/left/{name}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(image)
        write_pfm(tmp_path / f"disparity/a/left/{name}.pfm", (1050 / depth[t]).numpy())
        stored = (cam2world[t] * torch.tensor([1.0, -1.0, -1.0, 1.0]).double()).flatten().tolist()
        lines += [f"Frame {t + 6}", "L " + " ".join(map(repr, stored)), "R " + " ".join(map(repr, stored)), ""]
        if t + 1 < frames:
            ahead = pose.transform(pose.inverse(cam2world[t + 1]), points[t])
            uv = camera.project(ahead, k) - camera.pixel_grid(size)
            change = 1050 / ahead[..., 2] - 1050 / depth[t]
            write_pfm(tmp_path / f"disparity_change/a/into_future/left/{name}.pfm", change.numpy())
            flow = torch.cat([uv, 0 * uv[..., :1]], -1).numpy()
            write_pfm(tmp_path / f"optical_flow/a/into_future/left/OpticalFlowIntoFuture_{name}_L.pfm", flow)
    cameras = tmp_path / "camera_data/a/camera_data.txt"
    cameras.parent.mkdir(parents=True)
    cameras.write_text("\n".join(lines))
    (scene,) = convert("flyingthings", tmp_path)
    assert scene.scene_flow is not None and scene.flow_valid is not None and scene.cameras is not None
    torch.testing.assert_close(scene.cameras.cam2world, pose.relative_to_first(cam2world))
    assert scene.flow_valid[:2].all() and not scene.flow_valid[2].any()
    assert float(scene.scene_flow.abs().max()) < 1e-3, "a static world stands still (disparity is float32)"
    first_world = torch.stack([pose.transform(pose.inverse(cam2world[0]), p) for p in points]).float()
    torch.testing.assert_close(scene.points, first_world, atol=1e-3, rtol=1e-4)
    assert not sceneflow.dynamic_mask(scene, 1e-3).any()


def test_tum_layout_matches_clocks_and_drops_what_has_no_partner(tmp_path: Path) -> None:
    folder = tmp_path / "rgbd_dataset_freiburg3_test"
    (folder / "rgb").mkdir(parents=True)
    rgb, depth, truth = [], [], ["# t tx ty tz qx qy qz qw"]
    for i in range(4):
        t = 100 + i / 30
        Image.fromarray(np.full((6, 8, 3), 10 * i, np.uint8)).save(folder / f"rgb/{i}.png")
        rgb.append(f"{t:.6f} rgb/{i}.png")
        if i != 2:  # frame 2 has no depth
            write_png16(folder / f"depth/{i}.png", np.full((6, 8), 5000 * (i + 1)))
            depth.append(f"{t + 0.01:.6f} depth/{i}.png")
        truth.append(f"{t - 0.004:.6f} {i} 0 0 0 0 0 1")
    for name, lines in (("rgb", rgb), ("depth", depth), ("groundtruth", truth)):
        (folder / f"{name}.txt").write_text("\n".join(lines))
    (scene,) = convert("tum", tmp_path)
    assert len(scene) == 3 and scene.provenance.settings["unmatched_frames"] == 1
    assert scene.cameras is not None
    assert scene.cameras.cam2world[:, 0, 3].tolist() == [0, 1, 3]
    assert scene.points[:, 0, 0, 2].tolist() == [1, 2, 4]
    torch.testing.assert_close(scene.video.timestamps, torch.tensor([0, 1 / 30, 0.1]).double(), atol=2e-6, rtol=0)
    assert float(scene.cameras.intrinsics[0, 0, 0]) == tum.INTRINSICS["freiburg3"][0]
    assert tum.nearest_in_time(torch.tensor([0.0, 1.0]), torch.tensor([0.01, 5.0])) == [0, None]
