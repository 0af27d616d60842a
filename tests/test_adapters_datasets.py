"""Every adapter against a writer of its format that shares no code with it: converting gives the scene back."""

from __future__ import annotations

import pickle
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from adapters_writers.expected import Expected, compare
from adapters_writers.packing import damage
from adapters_writers.truth import to
from worldline.data.adapters import sequences
from worldline.data.clips import Clip, DamagedFile, Sequence

WRITERS = {
    "bedlam": ("OpenEXR",),
    "blinkvision": (),
    "bonn": (),
    "ddad": (),
    "deepdeform": (),
    "dynamic_replica": (),
    "flyingthings": (),
    "gta_sfm": ("h5py",),
    "hololens": (),
    "kitti_depth": (),
    "kitti_odometry": (),
    "kitti_raw": (),
    "kitti_scene_flow": (),
    "kubric": (),
    "matrixcity": ("OpenEXR",),
    "motioncrafter": ("h5py",),
    "mvs_synth": ("OpenEXR",),
    "omniworld": (),
    "point_odyssey": (),
    "scannetpp": (),
    "sintel": (),
    "slambook": (),
    "spring": ("h5py",),
    "synthia": (),
    "tapvid3d": (),
    "tartanair": (),
    "trajscene": (),
    "tum": (),
    "vkitti2": (),
}
"""The data set of every writer -> the optional libraries that both sides need."""


@pytest.fixture(scope="module", params=WRITERS)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, list[Expected]]:
    for library in WRITERS[request.param]:
        pytest.importorskip(library)
    root = tmp_path_factory.mktemp(request.param)
    return request.param, root, import_module(f"adapters_writers.{request.param}").write(root)


def found(dataset: str, root: Path) -> dict[str, Sequence]:
    listed = sequences(dataset, root)
    assert listed is not None
    return {sequence.name: sequence for sequence in listed}


def check(sequence: Sequence, expected: Expected, start: int, stop: int) -> None:
    clip = sequence.read(start, stop)
    scene = clip.scene if isinstance(clip, Clip) else clip
    compare(scene, expected, start, stop)
    assert scene.provenance.source.endswith(expected.name)
    if expected.tracks is None:
        return
    assert isinstance(clip, Clip) and clip.tracks is not None
    points, visible = expected.tracks[0][start:stop], expected.tracks[1][start:stop]
    if expected.cameras:
        points = to(expected.truth.world2cam[start], points)
    scale = np.abs(points).max()
    assert (clip.tracks.visible.numpy() == visible).all() and clip.tracks.known.numpy()[visible].all()
    assert np.abs(clip.tracks.points.numpy() - points)[clip.tracks.known.numpy()].max() < 1e-5 * scale + 1e-4


def test_a_written_scene_comes_back(written: tuple[str, Path, list[Expected]]) -> None:
    dataset, root, expected = written
    listed = found(dataset, root)
    assert sorted(listed) == sorted(one.name for one in expected)
    for one in expected:
        sequence = listed[one.name]
        assert sequence.frames == len(one.truth.depth)
        pickle.loads(pickle.dumps(sequence.read))  # another process reads it
        check(sequence, one, 0, sequence.frames)


def test_a_part_is_in_the_world_of_its_first_frame(written: tuple[str, Path, list[Expected]]) -> None:
    dataset, root, expected = written
    for one in expected:
        sequence = found(dataset, root)[one.name]
        if sequence.cuttable and sequence.frames > 2:
            check(sequence, one, 1, 3)


def test_a_damaged_file_is_named(written: tuple[str, Path, list[Expected]], tmp_path: Path) -> None:
    dataset, root, expected = written
    for one in expected:
        for pattern in one.damage:
            copy = tmp_path / root.name
            shutil.copytree(root, copy)
            (path,) = copy.glob(pattern)
            damage(path)
            with pytest.raises(DamagedFile) as caught:
                found(dataset, copy)[one.name].whole()
            assert caught.value.path == path, f"{pattern}: {caught.value}"
            shutil.rmtree(copy)


VARIANTS = [
    ("vkitti2", {"frame": "from camera t to camera t+1"}, "scene_flow_frame"),
    ("vkitti2", {"frame": "in camera t, without camera motion"}, "scene_flow_frame"),
    ("vkitti2", {"frame": "in the world"}, "scene_flow_frame"),
    ("flyingthings", {"inverted": False}, "pose_reading"),
    ("flyingthings", {"inverted": True}, "pose_reading"),
    ("point_odyssey", {"along_ray": False}, "depth_reading"),
    ("point_odyssey", {"along_ray": True}, "depth_reading"),
    ("bedlam", {"along_ray": True}, "depth_reading"),
    ("gta_sfm", {"inverted": True}, "pose_reading"),
    ("mvs_synth", {"y_up": True}, "pose_reading"),
    ("motioncrafter", {"inverted": True}, "pose_reading"),
    ("motioncrafter", {"hidden": True}, "flow_mask_reading"),
    ("bonn", {"marker": True}, "pose_reading"),
    ("dynamic_replica", {"isotropic": True}, ""),
    ("synthia", {"grey": True}, ""),
    ("tapvid3d", {"objects": False, "extrinsics": False}, ""),
    ("trajscene", {"torch_tensors": False}, ""),
]


@pytest.mark.parametrize("dataset,variant,question", VARIANTS, ids=lambda value: str(value))
def test_what_documents_disagree_on_is_decided_by_the_data(
    dataset: str, variant: dict[str, object], question: str, tmp_path: Path
) -> None:
    """The same scene written both ways comes back the same, and the provenance says which way it was."""
    for library in WRITERS[dataset]:
        pytest.importorskip(library)
    (one,) = import_module(f"adapters_writers.{dataset}").write(tmp_path, **variant)
    sequence = found(dataset, tmp_path)[one.name]
    check(sequence, one, 0, sequence.frames)
    if question:
        record = sequence.whole().provenance.settings[question]
        assert record["decided"] and len(record["scores"]) > 1


def test_without_evidence_the_documented_reading_is_kept_and_said_to_be_undecided(tmp_path: Path) -> None:
    (one,) = import_module("adapters_writers.vkitti2").write(tmp_path)
    shutil.rmtree(tmp_path / "Scene01/clone/frames/forwardFlow")
    sequence = found("vkitti2", tmp_path)[one.name]
    check(sequence, one, 0, sequence.frames)
    assert not sequence.whole().provenance.settings["scene_flow_frame"]["decided"]
