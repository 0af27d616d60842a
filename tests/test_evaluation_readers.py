"""Other tools' outputs: each written as the tool writes it, then read back as the scene it came from."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from worldline.evaluation import readers
from worldline.evaluation.readers import bounded, find, read
from worldline.geometry import camera, pointmap, pose
from worldline.io import store
from worldline.scene import Cameras, Provenance, Scene4D, Video

SIZE, COUNT = (12, 16), 3


@cache
def scene() -> Scene4D:
    """Depth that differs everywhere, cameras that turn, one sky pixel, flow."""
    generator = torch.Generator().manual_seed(0)
    depth = 2 + 3 * torch.rand(COUNT, *SIZE, generator=generator)
    poses = pose.se3_exp(0.2 * torch.randn(COUNT, 6, generator=generator, dtype=torch.float64))
    poses = pose.relative_to_first(poses)
    intrinsics = camera.intrinsics_from_focal(14.0, SIZE).double().repeat(COUNT, 1, 1)
    valid = torch.ones(COUNT, *SIZE, dtype=torch.bool)
    valid[:, 0, 0] = False
    points = pose.transform(poses, pointmap.from_depth(depth, intrinsics)) * valid[..., None]
    flow_valid = valid.clone()
    flow_valid[-1] = False
    return Scene4D(
        video=Video(
            frames=(255 * torch.rand(COUNT, *SIZE, 3, generator=generator)).to(torch.uint8),
            timestamps=torch.arange(COUNT, dtype=torch.float64) / 10,
        ),
        points=points,
        valid=valid,
        cameras=Cameras(intrinsics=intrinsics, cam2world=poses, size=SIZE),
        scene_flow=0.1 * torch.randn(COUNT, *SIZE, 3, generator=generator),
        flow_valid=flow_valid,
        confidence=torch.rand(COUNT, *SIZE, generator=generator),
        provenance=Provenance(system="test"),
    )


def depth_of(item: Scene4D) -> np.ndarray:
    return pointmap.scene_depth(item).numpy()


def cameras_of(item: Scene4D) -> Cameras:
    assert item.cameras is not None
    return item.cameras


def check(found: Scene4D, tolerance: float = 1e-5) -> None:
    """Points, masks and cameras are those of the scene."""
    truth = scene()
    assert torch.equal(found.valid, truth.valid)
    assert torch.allclose(found.points[found.valid], truth.points[truth.valid], atol=tolerance)
    assert torch.allclose(cameras_of(found).cam2world, cameras_of(truth).cam2world, atol=1e-6)
    assert torch.allclose(cameras_of(found).intrinsics, cameras_of(truth).intrinsics, atol=1e-6)


def test_motioncrafter(tmp_path: Path) -> None:
    truth = scene()
    np.savez(
        tmp_path / "clip.npz",
        point_map=truth.points.numpy().astype(np.float16),
        valid_mask=truth.valid.numpy(),
        scene_flow=truth.scene_flow.numpy().astype(np.float16),
        deform_mask=np.ones_like(truth.valid.numpy()),
    )
    found = read(tmp_path / "clip.npz", like=truth.video)
    assert found.cameras is None
    assert torch.allclose(found.points, truth.points, atol=5e-3)  # float16
    assert torch.allclose(found.scene_flow, truth.scene_flow, atol=1e-3)
    assert not bool(found.flow_valid[-1].any()) and bool(found.flow_valid[0].any())
    assert torch.equal(found.video.timestamps, truth.video.timestamps)
    assert torch.equal(found.video.frames, truth.video.frames)


def test_vggt(tmp_path: Path) -> None:
    truth = scene()
    np.savez(
        tmp_path / "predictions.npz",
        depth=depth_of(truth)[..., None],
        depth_conf=1 + truth.confidence.numpy(),
        extrinsic=pose.inverse(cameras_of(truth).cam2world).numpy()[:, :3],
        intrinsic=cameras_of(truth).intrinsics.numpy(),
        images=truth.video.rgb().permute(0, 3, 1, 2).numpy(),
        pose_enc_list=np.array(None, dtype=object),
    )
    found = read(tmp_path / "predictions.npz")
    check(found)
    assert torch.allclose(found.video.frames, truth.video.rgb())
    order = lambda values: values.flatten().argsort()  # noqa: E731
    assert torch.equal(order(found.confidence), order(1 + truth.confidence)) and float(found.confidence.max()) < 1


def test_megasam(tmp_path: Path) -> None:
    truth = scene()
    np.savez(
        tmp_path / "clip_sgd_cvd_hr.npz",
        images=truth.video.frames.numpy(),
        depths=depth_of(truth).astype(np.float16),
        intrinsic=cameras_of(truth).intrinsics[0].numpy(),
        cam_c2w=cameras_of(truth).cam2world.numpy(),
    )
    found = read(tmp_path / "clip_sgd_cvd_hr.npz")
    check(found, tolerance=1e-2)  # float16
    assert torch.equal(found.video.frames, truth.video.frames)


@pytest.mark.parametrize("with_table", [True, False])
def test_geo4d_and_monst3r_folder(tmp_path: Path, with_table: bool) -> None:
    truth = scene()
    poses = cameras_of(truth).cam2world
    wxyz = pose.matrix_to_quaternion(poses[:, :3, :3])
    rows = torch.cat([torch.arange(COUNT)[:, None].double(), poses[:, :3, 3], wxyz], 1)
    np.savetxt(tmp_path / "pred_traj.txt", rows.numpy())
    np.savetxt(tmp_path / "pred_focal.txt", cameras_of(truth).focal_px.numpy())
    if with_table:
        np.savetxt(tmp_path / "pred_intrinsics.txt", cameras_of(truth).intrinsics.reshape(COUNT, 9).numpy())
    for index in range(COUNT):
        np.save(tmp_path / f"frame_{index:04d}.npy", depth_of(truth)[index])
        np.save(tmp_path / f"conf_{index}.npy", 5 * truth.confidence[index].numpy())
        Image.fromarray(truth.video.frames[index].numpy()).save(tmp_path / f"frame_{index:04d}.png")
    found = read(tmp_path)
    assert torch.equal(found.video.frames, truth.video.frames)
    assert torch.allclose(found.confidence, bounded(5 * truth.confidence))
    if with_table:
        check(found)
    else:  # the tools put the principal point at W/2, H/2
        assert float(cameras_of(found).intrinsics[0, 0, 2]) == SIZE[1] / 2
    (tmp_path / "frame_0002.npy").unlink()
    with pytest.raises(ValueError, match="2 depth maps for 3 poses"):
        read(tmp_path)


def _write_colmap_text(folder: Path) -> None:
    cameras, world2cam = cameras_of(scene()), pose.inverse(cameras_of(scene()).cam2world)
    fx, cx, cy = (float(cameras.intrinsics[0][i]) for i in ((0, 0), (0, 2), (1, 2)))
    camera_line = f"1 SIMPLE_RADIAL {SIZE[1]} {SIZE[0]} {fx} {cx + 0.5} {cy + 0.5} 0.01"
    (folder / "cameras.txt").write_text(f"# cameras\n{camera_line}\n")
    lines, points = ["# images"], []
    for index in reversed(range(COUNT)):  # COLMAP's order is not the video's
        q, t = pose.matrix_to_quaternion(world2cam[index, :3, :3]), world2cam[index, :3, 3]
        numbers = " ".join(repr(float(value)) for value in (*q, *t))
        lines.append(f"{index + 1} {numbers} 1 frame {index:03d}.png")
        row, column = 4, 5 + index
        identity = 100 + index
        lines.append(f"{column + 0.5} {row + 0.5} {identity} 3.0 3.0 -1" if index else "")
        points.append((identity, scene().points[index, row, column].tolist()))
    (folder / "images.txt").write_text("\n".join(lines))
    rows = [f"{identity} {x} {y} {z} 10 20 30 0.5 1 0" for identity, (x, y, z) in points]
    (folder / "points3D.txt").write_text("\n".join(rows))


def _write_colmap_binary(folder: Path) -> None:
    cameras, world2cam = cameras_of(scene()), pose.inverse(cameras_of(scene()).cam2world)
    fx, fy, cx, cy = (float(cameras.intrinsics[0][i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    numbers = struct.pack("<4d", fx, fy, cx + 0.5, cy + 0.5)
    (folder / "cameras.bin").write_bytes(struct.pack("<QiiQQ", 1, 7, 1, SIZE[1], SIZE[0]) + numbers)
    images, points = struct.pack("<Q", COUNT), struct.pack("<Q", COUNT)
    for index in range(COUNT):
        q, t = pose.matrix_to_quaternion(world2cam[index, :3, :3]), world2cam[index, :3, 3]
        images += struct.pack("<i7di", index + 1, *q.tolist(), *t.tolist(), 7) + f"{index:03d}.png".encode() + b"\0"
        images += struct.pack("<Qddq", 1, 5.5 + index, 4.5, 100 + index)
        place = scene().points[index, 4, 5 + index].tolist()
        points += struct.pack("<Q3d3Bd", 100 + index, *place, 1, 2, 3, 0.5) + struct.pack("<Qii", 1, index + 1, 0)
    (folder / "images.bin").write_bytes(images)
    (folder / "points3D.bin").write_bytes(points)


@pytest.mark.parametrize(("write", "seen"), [(_write_colmap_text, 2), (_write_colmap_binary, 3)])
def test_colmap(tmp_path: Path, write, seen: int) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "clip" / "sparse" / "0"
    folder.mkdir(parents=True)
    write(folder)
    found = read(tmp_path / "clip")
    assert torch.allclose(cameras_of(found).cam2world, cameras_of(scene()).cam2world, atol=1e-9)
    assert torch.allclose(cameras_of(found).intrinsics, cameras_of(scene()).intrinsics, atol=1e-9)
    assert int(found.valid.sum()) == seen
    assert torch.allclose(found.points[2, 4, 7], scene().points[2, 4, 7], atol=1e-6)
    assert found.video.timestamps.tolist() == [0, 1, 2]


def test_damaged_colmap(tmp_path: Path) -> None:
    _write_colmap_binary(tmp_path)
    (tmp_path / "images.bin").write_bytes((tmp_path / "images.bin").read_bytes()[:40])
    with pytest.raises(ValueError, match="ends too early"):
        read(tmp_path)


def test_trajectories(tmp_path: Path) -> None:
    poses = cameras_of(scene()).cam2world
    wxyz = pose.matrix_to_quaternion(poses[:, :3, :3])
    times = scene().video.timestamps
    np.savetxt(tmp_path / "tum.txt", torch.cat([times[:, None], poses[:, :3, 3], wxyz[:, [1, 2, 3, 0]]], 1).numpy())
    np.savetxt(tmp_path / "kitti.txt", poses[:, :3].reshape(COUNT, 12).numpy(), header="comment")
    for name in ("tum.txt", "kitti.txt"):
        found = read(tmp_path / name)
        assert torch.allclose(cameras_of(found).cam2world, poses, atol=1e-9)
        assert bool(cameras_of(found).intrinsics.isnan().all()) and not bool(found.valid.any())
    assert torch.allclose(read(tmp_path / "tum.txt").video.timestamps, times)


def test_stored_scenes_and_folders(tmp_path: Path) -> None:
    store.save(scene(), tmp_path / "a")
    store.save(scene(), tmp_path / "b")
    (tmp_path / "notes.md").write_text("not a scene")
    assert list(find(tmp_path)) == ["a", "b"] and list(find(tmp_path / "a")) == ["a"]
    check(read(tmp_path / "b"))


def test_bad_input_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing at"):
        read(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds nothing that can be scored"):
        find(tmp_path)
    (tmp_path / "x.txt").write_text("hello world")
    with pytest.raises(ValueError, match="Known are: .*MegaSaM"):
        read(tmp_path / "x.txt")
    assert set(readers.READERS) >= {"motioncrafter", "vggt", "megasam", "colmap", "trajectory"}
