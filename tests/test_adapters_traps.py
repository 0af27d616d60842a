"""The known traps of the formats, one test each: what a published reader gets wrong is not what we do."""

from __future__ import annotations

import json
import os
import pickle
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters_writers import expected as expectation
from adapters_writers import packing
from adapters_writers.expected import Expected, compare
from adapters_writers.truth import Truth, default
from worldline.data.adapters import ADAPTERS, adapter, encodings, inert, reprojection, sequences, tfrecord, tracks
from worldline.data.clips import Clip, DamagedFile, PointTracks
from worldline.geometry import pose
from worldline.scene import Scene4D


def written(dataset: str, root: Path, **variant: object) -> tuple[Scene4D, Expected]:
    one = import_module(f"adapters_writers.{dataset}").write(root, **variant)[0]
    sequence = next(sequence for sequence in sequences(dataset, root) or [] if sequence.name == one.name)
    clip = sequence.read(0, sequence.frames)
    return (clip.scene if isinstance(clip, Clip) else clip), one


def agreement(scene: Scene4D, cam2world: torch.Tensor, depth: torch.Tensor | None = None) -> float:
    assert scene.cameras is not None
    local = pose.transform(pose.inverse(scene.cameras.cam2world), scene.points.double())
    z = (local[..., 2] * scene.valid if depth is None else depth).float()
    return reprojection.agreement(z, scene.cameras.intrinsics, cam2world.double(), rtol=0.01)[1]


def test_every_data_set_has_its_adapter_and_says_what_is_missing(tmp_path: Path) -> None:
    for name in ADAPTERS:
        for module in ("OpenEXR", "h5py"):
            pytest.importorskip(module)
        assert hasattr(adapter(name), "convert") and hasattr(adapter(name), "sequences")
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            sequences(name, tmp_path)


def test_ned_axes_are_permuted_not_negated(tmp_path: Path) -> None:
    """TartanAir: negating tz and qz, as a published converter does, makes the frames disagree."""
    scene, _ = written("tartanair", tmp_path)
    assert scene.cameras is not None
    rows = encodings.read_numbers(tmp_path / "office/Easy/P001/pose_left.txt")
    rows[:, [2, 5]] *= -1
    wrong = pose.relative_to_first(encodings.poses_from_translation_xyzw(rows))
    assert agreement(scene, scene.cameras.cam2world) > agreement(scene, wrong) + 0.2


@pytest.mark.parametrize("dataset", ["spring", "vkitti2", "sintel", "point_odyssey", "omniworld", "mvs_synth"])
def test_world_to_camera_is_inverted(dataset: str, tmp_path: Path) -> None:
    """Taken for camera-to-world, the same matrices make the frames disagree."""
    for module in ("OpenEXR", "h5py"):
        pytest.importorskip(module)
    scene, _ = written(dataset, tmp_path)
    assert scene.cameras is not None
    right = scene.cameras.cam2world
    assert agreement(scene, right) > agreement(scene, pose.inverse(right)) + 0.1


def test_poses_are_not_rounded_to_float16(tmp_path: Path) -> None:
    """A camera half a kilometre away would move by 25 cm; ours keeps a millimetre in text of nine digits."""
    truth = default()
    far = truth.cam2world.copy()
    far[:, :3, 3] += (500.0, -300.0, 200.0)
    moved = Truth(**{**truth.__dict__, "cam2world": far, "points": truth.points + (500.0, -300.0, 200.0)})
    tum = import_module("adapters_writers.tum")
    tum.write_streams(tmp_path / "rgbd_dataset_x", moved, far)
    (sequence,) = sequences("tum", tmp_path) or []
    scene = sequence.whole()
    assert scene.cameras is not None and scene.cameras.cam2world.dtype == torch.float64
    wanted = np.linalg.inv(far[0]) @ far
    assert np.abs(scene.cameras.cam2world.numpy() - wanted).max() < 1e-5
    halved = np.linalg.inv(far[0].astype(np.float16).astype(float)) @ far.astype(np.float16).astype(float)
    assert np.abs(halved - wanted).max() > 0.05


def test_a_mask_of_what_is_hidden_is_not_a_mask_of_what_is_known(tmp_path: Path) -> None:
    """TartanAir's and Sintel's masks are non-zero where flow is NOT known; flow is known where they are zero."""
    for dataset in ("tartanair", "sintel"):
        scene, one = written(dataset, tmp_path / dataset)
        assert scene.flow_valid is not None
        hidden = (one.truth.depth[:-1] > 0) & ~one.truth.seen
        assert hidden.any() and not scene.flow_valid[:-1].numpy()[hidden].any()
        assert not scene.flow_valid[-1].any(), "the last frame has no flow, which is not the same as zero flow"


def test_euclidean_depth_becomes_planar(tmp_path: Path) -> None:
    """Kubric stores the distance to the camera's centre: off the middle it is larger than z."""
    scene, one = written("kubric", tmp_path)
    assert scene.cameras is not None
    local = pose.transform(pose.inverse(scene.cameras.cam2world), scene.points.double())
    distance = np.linalg.norm(one.truth.local, axis=-1)
    assert np.abs(local[..., 2].numpy() - one.truth.depth).max() < 1e-4
    assert np.abs(distance - one.truth.depth).max() > 0.3


def test_flow_of_rows_first_is_turned_around(tmp_path: Path) -> None:
    """Kubric: read as (u, v), the same flow explains nearly nothing."""
    scene, one = written("kubric", tmp_path)
    assert scene.provenance.settings["optical_flow_explained"] == 1.0
    meta = tmp_path / "1234" / "metadata.json"
    still = json.loads(meta.read_text())
    still["instances"] = still["instances"][::-1]  # the ball takes the pose of what stands still
    meta.write_text(json.dumps(still))
    wrong = next(s for s in sequences("kubric", tmp_path) or [] if s.name == "1234").whole()
    assert wrong.provenance.settings["optical_flow_explained"] < 0.95, "wrong poses of objects show"
    swapped = np.abs(one.truth.optical - one.truth.optical[..., ::-1]).max(-1)
    assert (swapped > 1).mean() > 0.2


def test_flow_of_twice_the_size_is_subsampled_not_averaged(tmp_path: Path) -> None:
    """Spring: every second sample; the others (here NaN) must not be touched, and values are not halved."""
    pytest.importorskip("h5py")
    spring = adapter("spring")
    _, one = written("spring", tmp_path)
    found = spring.read_map(next(tmp_path.rglob("flow_FW_left_0001.flo5")), "flow", one.truth.depth.shape[1:])
    assert found.shape == one.truth.optical[0].shape and np.abs(found.numpy() - one.truth.optical[0]).max() < 1e-5
    with pytest.raises(ValueError, match="once or twice"):
        spring.read_map(next(tmp_path.rglob("flow_FW_left_0001.flo5")), "flow", (20, 30))


def test_rows_of_a_pfm_run_upwards(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    packing.pfm(tmp_path / "a.pfm", values)
    assert (tmp_path / "a.pfm").read_bytes().endswith(values[0].tobytes()), "the last row of the file is the top one"
    assert torch.equal(encodings.read_pfm(tmp_path / "a.pfm"), torch.from_numpy(values))


def test_minus_infinity_is_no_displacement(tmp_path: Path) -> None:
    scene, one = written("deepdeform", tmp_path)
    assert scene.scene_flow is not None and scene.flow_valid is not None
    assert scene.scene_flow.isfinite().all() and 0 < int(scene.flow_valid.sum()) < int(scene.valid[0].sum())


def test_sixteen_bits_of_float16_are_not_millimetres(tmp_path: Path) -> None:
    depth = np.array([[0.5, 3.25], [60000.0, 0.0]], np.float16)
    packing.png(tmp_path / "a.png", depth.view(np.uint16))
    assert torch.equal(encodings.read_float16_depth(tmp_path / "a.png"), torch.from_numpy(depth.astype(np.float32)))


def test_a_png_that_opencv_would_fill_up_is_refused(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 65535, (40, 40, 3)).astype(np.uint16)
    packing.png(tmp_path / "a.png", image)
    data = bytearray((tmp_path / "a.png").read_bytes())
    assert torch.equal(encodings.read_rgb16(tmp_path / "a.png"), torch.from_numpy(image.astype(np.int32)))
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.png").write_bytes(data)
    for name in ("cut.png", "flipped.png"):
        with pytest.raises(ValueError, match="cut off or damaged"):
            encodings.read_rgb16(tmp_path / name)


class Runs:
    """What a malicious pickle does: unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_is_read_and_never_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    _, one = written("trajscene", tmp_path)
    (path,) = tmp_path.rglob("*.pkl")
    path.write_bytes(pickle.dumps({"coords": Runs(target), "vis": 0}))
    (sequence,) = sequences("trajscene", tmp_path) or []
    with pytest.raises(DamagedFile, match="mkdir") as caught:
        sequence.whole()
    assert caught.value.path == path and not target.exists()
    np.savez(tmp_path / "a.npz", visibility=np.ones((2, 3)), images_jpeg_bytes=np.array([Runs(target)], dtype=object))
    (sequence,) = sequences("tapvid3d", tmp_path) or []
    with pytest.raises(DamagedFile, match="mkdir"):
        sequence.whole()
    assert not target.exists() and one.name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_pickle_protocol_are_found(protocol: int) -> None:
    content = {
        "tensor": torch.arange(12.0).reshape(3, 4).mT, "bool": torch.tensor([True, False]), "text": "é", "n": -7,
        "fortran": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)), "list": [1.5, (b"x", None)],
        "objects": np.array([b"a", b"b\0c"], dtype=object), "scalar": np.float32(2.5),
    }  # fmt: skip
    found = inert.convert(inert.parse(pickle.dumps(content, protocol=protocol)))
    assert torch.equal(found["tensor"], content["tensor"]) and torch.equal(found["bool"], content["bool"])
    assert np.array_equal(found["fortran"], content["fortran"]) and list(found["objects"]) == [b"a", b"b\0c"]
    assert (found["text"], found["n"], found["list"], found["scalar"]) == ("é", -7, [1.5, (b"x", None)], 2.5)
    with pytest.raises(ValueError):
        inert.parse(pickle.dumps(content, protocol=protocol)[:-20])


def test_a_record_with_a_wrong_check_sum_is_damaged(tmp_path: Path) -> None:
    kubric = import_module("adapters_writers.kubric")
    path = tmp_path / "movi.tfrecord-00000-of-00001"
    kubric.write_record(path, kubric.make(sky=False))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (sequence,) = sequences("kubric", tmp_path) or []
    with pytest.raises(DamagedFile, match="check sum"):
        sequence.whole()
    path.write_bytes(data[:-100])
    (sequence,) = sequences("kubric", tmp_path) or []
    with pytest.raises(DamagedFile, match="cut off"):
        sequence.whole()


def test_one_damaged_list_does_not_hide_the_other_sequences(tmp_path: Path) -> None:
    _, one = written("tapvid3d", tmp_path)
    (path,) = tmp_path.rglob("*.npz")
    path.with_name("another.npz").write_bytes(path.read_bytes()[:500])
    broken, whole = sequences("tapvid3d", tmp_path) or []
    assert len(whole.whole()) == len(one.truth.depth)
    with pytest.raises(DamagedFile) as caught:
        broken.read(0, broken.frames)
    assert caught.value.path == path.with_name("another.npz")


@pytest.mark.parametrize(
    "dataset,table", [("vkitti2", "extrinsic.txt"), ("tartanair", "pose_left.txt"), ("spring", "extrinsics.txt")]
)
def test_a_table_with_too_few_rows_is_damaged(dataset: str, table: str, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    written(dataset, tmp_path)
    (path,) = tmp_path.rglob(table)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    (sequence,) = sequences(dataset, tmp_path) or []
    with pytest.raises(DamagedFile, match="rows") as caught:
        sequence.whole()
    assert caught.value.path == path


def test_varints_of_all_lengths() -> None:
    values = [0, 1, 127, 128, 300, 65535, 2**31, 2**62]
    packed = b"".join(import_module("adapters_writers.kubric").varint(value) for value in values)
    assert tfrecord.varints(packed).tolist() == values


def test_of_tracks_in_one_pixel_the_nearest_counts() -> None:
    k = torch.tensor([[[10.0, 0, 2], [0, 10, 2], [0, 0, 1]]]).double().repeat(2, 1, 1)
    near, far = torch.tensor([0.0, 0, 2]), torch.tensor([0.0, 0, 4])
    points = torch.stack([torch.stack([far, near]), torch.stack([far + 1, near + 2])])
    seen = torch.ones(2, 2, dtype=torch.bool)
    followed = PointTracks(points=points, known=seen, visible=seen)
    poses = torch.eye(4).double().repeat(2, 1, 1)
    depth = tracks.splat_depth(followed, k, poses, (5, 5))
    flow, valid = tracks.splat_flow(followed, depth, k, poses)
    assert depth[0, 2, 2] == 2 and valid[0].sum() == 1 and flow[0, 2, 2].tolist() == [2, 2, 2]


def test_the_comparison_itself_can_fail(tmp_path: Path) -> None:
    """A scene whose points, poses or flow are off by a few steps is not taken for the one that was written."""
    scene, one = written("vkitti2", tmp_path)
    assert scene.scene_flow is not None and scene.cameras is not None
    frames = len(scene)
    compare(scene, one, 0, frames)
    from dataclasses import replace

    wrong = [
        replace(scene, points=scene.points * 1.01),
        replace(scene, scene_flow=scene.scene_flow * 1.5),
        replace(scene, flow_valid=torch.zeros_like(scene.valid)),
        replace(scene, cameras=replace(scene.cameras, cam2world=scene.cameras.cam2world.mT)),
    ]
    for other in wrong:
        with pytest.raises(AssertionError):
            compare(other, one, 0, frames)
    assert expectation.FLOAT32 < 1e-5


def test_clips_written_for_motioncrafter_come_back(tmp_path: Path) -> None:
    """Our own clips have float64 poses and a mask that is false in the last frame, and lose nothing but float32."""
    pytest.importorskip("h5py")
    crafter = adapter("motioncrafter")
    scene, _ = written("vkitti2", tmp_path / "vkitti2")
    for name in ("a/00000_00004", "b/00000_00004", "a/00000_00004"):  # the last replaces the first
        crafter.write(tmp_path / "clips", name, scene)
    first, second = sequences("motioncrafter", tmp_path / "clips") or []
    assert {first.name, second.name} == {"a/00000_00004", "b/00000_00004"}
    back = first.whole()
    assert back.cameras is not None and scene.cameras is not None and back.scene_flow is not None
    torch.testing.assert_close(back.points, scene.points, atol=2e-5, rtol=0)
    torch.testing.assert_close(back.cameras.cam2world, scene.cameras.cam2world, atol=1e-12, rtol=0)
    torch.testing.assert_close(back.cameras.intrinsics, scene.cameras.intrinsics, atol=1e-3, rtol=0)
    torch.testing.assert_close(back.scene_flow, scene.scene_flow, atol=2e-5, rtol=0)
    assert torch.equal(back.valid, scene.valid) and torch.equal(back.flow_valid, scene.flow_valid)


def test_a_curated_record_is_read_with_its_cameras(tmp_path: Path) -> None:
    """`worldline data curate` writes records; beside the published files they are preferred, for they have cameras."""
    from adapters_writers import trajscene
    from worldline.data.curate.record import SUFFIX, write_record
    from worldline.data.curate.tracked import Tracked
    from worldline.scene import Cameras, Provenance, Tracks4D

    (one,) = trajscene.write(tmp_path)
    truth, size = one.truth, one.truth.depth.shape[1:]
    first = truth.world2cam[0]
    cam2world = torch.from_numpy(first @ truth.cam2world)
    points = truth.tracks @ first[:3, :3].T + first[:3, 3]
    solid = torch.from_numpy(truth.depth[0] > 0)
    followed = Tracks4D(
        points=torch.from_numpy(points * solid[..., None].numpy()).float(),
        visible=torch.from_numpy(truth.visible),
        reference=0,
        colors=torch.from_numpy(truth.rgb[0]).float() / 255,
        timestamps=torch.arange(len(points)).double() / 24,
        cameras=Cameras(intrinsics=torch.from_numpy(truth.k).repeat(len(points), 1, 1), cam2world=cam2world, size=size),
        provenance=Provenance(system="truth"),
    )
    tracked = Tracked(tracks=followed, valid=solid, moving=torch.from_numpy(truth.object_id[0] == 1))
    (base,) = tmp_path.rglob("*.mp4")
    write_record(base.with_name(f"000001{SUFFIX}"), tracked, followed.visible, {"caption": "x"})
    (sequence,) = sequences("trajscene", tmp_path) or []
    scene = sequence.whole()
    assert scene.cameras is not None and scene.provenance.settings["camera_motion"] == "removed"
    torch.testing.assert_close(scene.cameras.cam2world, cam2world, atol=1e-9, rtol=0)
    error = (scene.extras["tracks"] - followed.points).norm(dim=-1)
    assert float(error.max()) < 0.01, "displacements are float16"
    assert torch.equal(scene.extras["visible_from_reference"], followed.visible & solid)
    assert scene.provenance.settings["caption"] == "A ball rolls past a wall."
