"""A scene on disk: what comes back is what went in, and damage or a crash is never silent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldline.io import atomic
from worldline.io.store import PartialRun, SceneWriter, check_output, info, load, open_scene, save
from worldline.scene import Cameras, Provenance, Scene4D, Tracks4D, Video


def make_scene(
    count: int = 4,
    size: tuple[int, int] = (6, 8),
    *,
    seed: int = 0,
    cameras: bool = True,
    flow: bool = True,
    confidence: bool = True,
    extras: bool = True,
) -> Scene4D:
    g = torch.Generator().manual_seed(seed)
    shape = (count, *size)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, 3] = torch.randn(count, 3, generator=g, dtype=torch.float64)
    k = torch.tensor([[50.1, 0, 3.5], [0, 50.7, 2.5], [0, 0, 1]], dtype=torch.float64).repeat(count, 1, 1)
    return Scene4D(
        video=Video(
            frames=torch.randint(0, 256, (*shape, 3), generator=g, dtype=torch.uint8),
            timestamps=torch.rand(count, generator=g, dtype=torch.float64).add(0.1).cumsum(0),
        ),
        points=torch.randn(*shape, 3, generator=g) * 10,
        valid=torch.rand(shape, generator=g) > 0.2,
        cameras=Cameras(intrinsics=k, cam2world=poses, size=size) if cameras else None,
        scene_flow=torch.randn(*shape, 3, generator=g) if flow else None,
        flow_valid=torch.rand(shape, generator=g) > 0.5 if flow else None,
        confidence=torch.rand(shape, generator=g) if confidence else None,
        scale="metric",
        provenance=Provenance(system="truth", settings={"window": 25, "names": ["a"]}, unreliable=("scene_flow",),
                              weights_sha256="ab", seconds=1.5, peak_memory_bytes=10**9, source="a.mp4"),
        extras={"object_id": torch.randint(0, 9, shape, generator=g), "tracks": torch.randn(*shape, 3, generator=g)}
        if extras else {},
    )  # fmt: skip


def make_tracks(count: int = 4, size: tuple[int, int] = (6, 8)) -> Tracks4D:
    scene = make_scene(count, size)
    return Tracks4D(points=scene.points, visible=scene.valid, reference=0, colors=scene.video.rgb()[0],
                    timestamps=scene.video.timestamps, cameras=scene.cameras, scale="relative",
                    provenance=scene.provenance)  # fmt: skip


def assert_equal(a: object, b: object) -> None:
    """Every field of two scenes, tracks, cameras or videos, bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)  # type: ignore[attr-defined]
    elif hasattr(a, "__dataclass_fields__"):
        for name in a.__dataclass_fields__:
            assert_equal(getattr(a, name), getattr(b, name))
    elif isinstance(a, dict):
        assert set(a) == set(b)  # type: ignore[call-overload]
        for key in a:
            assert_equal(a[key], b[key])  # type: ignore[index]
    else:
        assert a == b


def chunk(root: Path, name: str, frame: int) -> Path:
    (file,) = (root / name).glob(f"c.{frame}.*")
    return file


# ------------------------------------------------------------------------------------------------------- round trips


@given(
    count=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9), cameras=st.booleans(),
    flow=st.booleans(), confidence=st.booleans(), extras=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, max_examples=12)
def test_scene_round_trip(
    tmp_path_factory: pytest.TempPathFactory, count: int, height: int, width: int, **options: bool
) -> None:
    scene = make_scene(count, (height, width), **options)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("store") / "scene"
    save(scene, path)
    assert_equal(load(path), scene)


def test_tracks_round_trip(tmp_path: Path) -> None:
    tracks = make_tracks()
    save(tracks, tmp_path / "t")
    assert_equal(load(tmp_path / "t"), tracks)
    assert_equal(load(tmp_path / "t", slice(1, 3)).points, tracks.points[1:3])  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="holds tracks, not a scene"):
        open_scene(tmp_path / "t").scene()


def test_one_millimetre_at_a_hundred_metres(tmp_path: Path) -> None:
    scene = make_scene(1)
    near = torch.full_like(scene.points, 100.0)
    save(replace(scene, points=near), tmp_path / "near")
    save(replace(scene, points=near + 0.001), tmp_path / "far")
    shift = load(tmp_path / "far").points - load(tmp_path / "near").points  # type: ignore[union-attr]
    assert (shift - 0.001).abs().max() < 1e-5


def test_special_values_survive(tmp_path: Path) -> None:
    scene = make_scene(2, extras=False)
    points = scene.points.clone()
    points[0, 0, 0] = torch.tensor([float("nan"), float("inf"), -0.0])
    zero = torch.zeros_like(scene.valid)
    save(replace(scene, points=points, valid=zero, flow_valid=zero), tmp_path / "s")
    again = load(tmp_path / "s")
    assert isinstance(again, Scene4D)
    assert torch.equal(again.points.view(torch.int32), points.view(torch.int32))
    assert not again.valid.any()  # frames of zeros are stored, not taken for missing ones


def test_float_video_and_odd_settings(tmp_path: Path) -> None:
    scene = make_scene(2, extras=False)
    provenance = replace(scene.provenance, settings={"lr": float("nan"), "path": Path("a"), "t": torch.ones(2),
                                                     "tuple": (1, 2)})  # fmt: skip
    poses = scene.cameras.cam2world.clone()  # type: ignore[union-attr]
    poses[1, 0, 3] = torch.nan
    cameras = replace(scene.cameras, cam2world=poses)  # type: ignore[type-var]
    video = Video(frames=scene.video.rgb(), timestamps=scene.video.timestamps)
    save(replace(scene, video=video, provenance=provenance, cameras=cameras), tmp_path / "s")
    again = load(tmp_path / "s")
    assert isinstance(again, Scene4D) and again.cameras is not None
    assert torch.equal(again.video.frames, scene.video.frames)
    assert again.provenance.settings == {"lr": None, "path": "a", "t": [1.0, 1.0], "tuple": [1, 2]}
    assert torch.equal(again.cameras.cam2world.isnan(), poses.isnan())
    json.loads((tmp_path / "s" / "scene.json").read_text(), parse_constant=pytest.fail)  # no bare NaN for other readers


def test_masks_are_compact(tmp_path: Path) -> None:
    scene = make_scene(1, (240, 320), extras=False)
    save(scene, tmp_path / "s")
    assert chunk(tmp_path / "s", "valid", 0).stat().st_size < 1.1 * 240 * 320 / 8
    smooth = replace(scene, valid=torch.ones_like(scene.valid))
    save(smooth, tmp_path / "s", overwrite=True)
    assert chunk(tmp_path / "s", "valid", 0).stat().st_size < 200


def test_any_zarr_reader_sees_the_arrays(tmp_path: Path) -> None:
    import zarr

    scene = make_scene()
    save(scene, tmp_path / "s")
    group = zarr.open_group(str(tmp_path / "s"), mode="r")
    assert np.array_equal(group["points"][:], scene.points.numpy())
    assert np.array_equal(group["extras/object_id"][2], scene.extras["object_id"][2].numpy())


# ---------------------------------------------------------------------------------------------------- parts and lazy


def test_partial_read_touches_only_its_chunks(tmp_path: Path) -> None:
    scene = make_scene(5)
    save(scene, tmp_path / "s")
    for name in ("rgb", "points", "valid", "scene_flow", "flow_valid", "confidence", "extras/object_id",
                 "extras/tracks"):  # fmt: skip
        for frame in (0, 1, 3):
            chunk(tmp_path / "s", name, frame).unlink()
    assert_equal(load(tmp_path / "s", slice(2, 5, 2)), scene.select(slice(2, 5, 2)))
    assert_equal(open_scene(tmp_path / "s").frame(4), scene.select(slice(4, 5)))
    for file in (tmp_path / "s").glob("*/c.2.*"):
        if file.parent.name != "points":
            file.unlink()
    assert np.array_equal(open_scene(tmp_path / "s").read("points", 2), scene.points[2].numpy())


def test_ranges_outside(tmp_path: Path) -> None:
    save(make_scene(), tmp_path / "s")
    with pytest.raises(ValueError, match="lies outside"):
        load(tmp_path / "s", slice(4, 9))
    with pytest.raises(IndexError, match="frames 0 to 3"):
        open_scene(tmp_path / "s").read("points", 4)
    with pytest.raises(IndexError):
        open_scene(tmp_path / "s").read("points", -1)


def test_written_part_by_part(tmp_path: Path) -> None:
    scene = make_scene(7)
    with SceneWriter(tmp_path / "s") as writer:
        for start in range(0, 7, 3):
            writer.append(scene.select(slice(start, start + 3)))
        writer.provenance = replace(scene.provenance, seconds=9.0)
        assert not (tmp_path / "s").exists()
    assert_equal(load(tmp_path / "s"), replace(scene, provenance=replace(scene.provenance, seconds=9.0)))


def test_parts_must_agree(tmp_path: Path) -> None:
    scene = make_scene()
    for other in (make_scene(flow=False), make_scene(size=(6, 9)), make_scene(cameras=False),
                  replace(scene, scale="relative")):  # fmt: skip
        with pytest.raises(ValueError, match="Every part of"), SceneWriter(tmp_path / "s") as writer:
            writer.append(scene)
            writer.append(other)
    with pytest.raises(ValueError, match="has no frames"), SceneWriter(tmp_path / "s"):
        pass
    assert not list(tmp_path.iterdir())


def test_info(tmp_path: Path) -> None:
    scene = make_scene()
    save(scene, tmp_path / "s")
    found = json.loads(json.dumps(info(tmp_path / "s")))
    assert found["frames"] == 4 and (found["height"], found["width"]) == (6, 8)
    assert found["fps"] == pytest.approx(scene.video.fps)
    assert found["has_cameras"] and found["has_scene_flow"]
    assert found["focal_px"] == pytest.approx((50.1 * 50.7) ** 0.5)
    assert (found["scale"], found["system"], found["weights_sha256"]) == ("metric", "truth", "ab")
    assert (found["peak_memory_bytes"], found["seconds"]) == (10**9, 1.5)
    assert found["bytes"] > 0 and found["unreliable"] == ["scene_flow"]
    save(make_scene(1, cameras=False, flow=False), tmp_path / "plain")
    plain = info(tmp_path / "plain")
    assert plain["fps"] == 0 and plain["focal_px"] is None
    assert not plain["has_cameras"] and not plain["has_scene_flow"]


# ------------------------------------------------------------------------------------------------------------ damage


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from(["points", "rgb", "valid"]))
@settings(deadline=None, max_examples=25)
def test_every_bit_flip_is_reported(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, name: str
) -> None:
    root = tmp_path_factory.mktemp("flip") / "s"
    save(make_scene(2, (16, 16), extras=False), root)
    file = chunk(root, name, 1)
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"is damaged: frame 1 of {name} cannot be read") as caught:
        load(root)
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)
    load(root, slice(0, 1))  # the rest is still there


@pytest.mark.parametrize("content", [None, b"", b"\0" * 10])
def test_missing_and_cut_chunks_are_reported(tmp_path: Path, content: bytes | None) -> None:
    save(make_scene(), tmp_path / "s")
    file = chunk(tmp_path / "s", "points", 2)
    file.unlink() if content is None else file.write_bytes(content)
    match = "frame 2 of points is missing" if content is None else "frame 2 of points cannot be read"
    with pytest.raises(ValueError, match=match):
        load(tmp_path / "s")


def test_damaged_metadata_is_reported(tmp_path: Path) -> None:
    save(make_scene(), tmp_path / "s")
    metadata = tmp_path / "s" / "scene.json"
    text = metadata.read_text()
    for damaged in (text[:-20], "", "[]", text.replace('"frames": 4', '"frames": 5'), text.replace("50.1", "50.2")):
        metadata.write_text(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            load(tmp_path / "s")
    metadata.write_text(text.replace('"version": 1', '"version": 99'))
    with pytest.raises(ValueError, match="newer Worldline"):
        load(tmp_path / "s")
    metadata.write_text(text)
    zarr_json = tmp_path / "s" / "points" / "zarr.json"
    zarr_json.write_text(zarr_json.read_text().replace("float32", "float64"))
    with pytest.raises(ValueError, match="frame 0 of points cannot be read"):
        load(tmp_path / "s")


def test_not_a_scene(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="not a Worldline scene"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="not a Worldline scene"):
        info(tmp_path / "file")
    PartialRun(tmp_path / "out", {}).put("w", {"x": torch.ones(1)})
    with pytest.raises(FileNotFoundError, match="run the same command again to resume"):
        load(tmp_path / "out")


# ----------------------------------------------------------------------------------------------------------- outputs


def test_outputs_are_checked_before_work(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "deep")
    assert not list(tmp_path.iterdir())  # creates nothing
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")
    save(make_scene(), tmp_path / "empty")
    with pytest.raises(FileExistsError, match="already holds a scene"):
        check_output(tmp_path / "empty")
    check_output(tmp_path / "empty", overwrite=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is a file"):
            check_output(tmp_path / "file", overwrite)
        with pytest.raises(FileExistsError, match="other things in it"):
            check_output(tmp_path / "folder", overwrite)
        with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
            check_output(tmp_path / "file" / "out", overwrite)
    assert (tmp_path / "folder" / "thesis.tex").exists()


@pytest.mark.parametrize(("number", "match"), [(30, "is read-only"), (13, "is read-only"), (28, "the disk is full")])
def test_read_only_and_full_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, match: str) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=match) as caught:
        check_output(tmp_path / "out")
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_truly_read_only_place() -> None:
    with pytest.raises(OSError, match="Cannot write /proc/out"):
        check_output("/proc/out")


def test_replacing_a_scene(tmp_path: Path) -> None:
    old, new = make_scene(seed=1), make_scene(2, seed=2)
    save(old, tmp_path / "s")
    with pytest.raises(FileExistsError):
        save(new, tmp_path / "s")
    assert_equal(load(tmp_path / "s"), old)
    save(new, tmp_path / "s", overwrite=True)
    assert_equal(load(tmp_path / "s"), new)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_replacing_without_the_exchange_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    test_replacing_a_scene(tmp_path)


def test_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "s")
    save(make_scene(), tmp_path / "link")
    save(make_scene(seed=3), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_equal(load(tmp_path / "disk" / "s"), make_scene(seed=3))


def test_failure_in_the_middle_leaves_the_old_scene(tmp_path: Path) -> None:
    old = make_scene(seed=1)
    save(old, tmp_path / "s")
    for failure in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(failure), SceneWriter(tmp_path / "s", overwrite=True) as writer:
            writer.append(make_scene())
            raise failure
    assert_equal(load(tmp_path / "s"), old)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_killed_process_leaves_the_old_scene(tmp_path: Path) -> None:
    old = make_scene(seed=1)
    save(old, tmp_path / "s")
    program = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_store import SceneWriter, make_scene
        with SceneWriter({str(tmp_path / "s")!r}, overwrite=True) as writer:
            writer.append(make_scene())
            os._exit(9)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, check=False)
    assert run.returncode == 9
    assert_equal(load(tmp_path / "s"), old)
    assert len(list(tmp_path.iterdir())) == 2  # what the killed run had
    save(make_scene(), tmp_path / "s", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]  # swept up by the next run


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(tiny_disk: Path) -> None:
    old = make_scene(1, extras=False)
    save(old, tiny_disk / "s")
    before = sorted(p for p in tiny_disk.rglob("*"))
    with pytest.raises(OSError, match="the disk is full") as caught:
        save(make_scene(8, (100, 100)), tiny_disk / "s", overwrite=True)
    assert "\n" not in str(caught.value)
    assert sorted(p for p in tiny_disk.rglob("*")) == before
    assert_equal(load(tiny_disk / "s"), old)
    run = PartialRun(tiny_disk / "p", {})
    run.put("small", {"x": torch.zeros(10)})
    with pytest.raises(OSError, match="the disk is full"):
        run.put("large", {"x": torch.zeros(200_000)})
    assert run.keys() == ["small"] and len(list(run.folder.iterdir())) == 2


def test_full_disk_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr.storage._local as local

    real, count = local._put, iter(range(10**6))

    def put(*args: object, **kwargs: object) -> int:
        if next(count) > 12:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "_put", put)
    with pytest.raises(OSError, match="the disk is full"):
        save(make_scene(), tmp_path / "s")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- unfinished runs


def test_unfinished_run_is_resumed(tmp_path: Path) -> None:
    tensors = {"points": torch.randn(3, 4), "mask": torch.ones(2, dtype=torch.bool), "empty": torch.zeros(0, 3),
               "half": torch.randn(5).half(), "view": torch.randn(4, 6).T}  # fmt: skip
    first = PartialRun(tmp_path / "out", {"window": 25, "seed": 0})
    assert not first.folder.exists() and first.get("w0") is None and first.resumed == ()
    first.put("w0", tensors)
    again = PartialRun(tmp_path / "out", {"seed": 0, "window": 25})
    assert again.resumed == ("w0",)
    assert_equal(again.get("w0"), {name: tensor.contiguous() for name, tensor in tensors.items()})
    again.put("w0", {"points": torch.zeros(1)})
    assert_equal(again.get("w0"), {"points": torch.zeros(1)})
    again.discard()
    assert not list(tmp_path.iterdir())


def test_other_settings_discard_it(tmp_path: Path) -> None:
    PartialRun(tmp_path / "out", {"seed": 0}).put("w0", {"x": torch.ones(1)})
    other = PartialRun(tmp_path / "out", {"seed": 1})
    assert other.resumed == () and other.get("w0") is None


def test_damaged_group_counts_as_absent(tmp_path: Path) -> None:
    run = PartialRun(tmp_path / "out", {})
    run.put("w0", {"x": torch.arange(100.0)})
    file = run.folder / "w0.safetensors"
    good = file.read_bytes()
    for damaged in (good[:-10], b"", good[:-10] + bytes([good[-10] ^ 1]) + good[-9:]):
        file.write_bytes(damaged)
        assert run.get("w0") is None
    file.write_bytes(good)
    assert run.get("w0") is not None


def test_foreign_folder_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="is no unfinished run"):
        PartialRun(tmp_path / "out", {})
    assert (tmp_path / "out.partial" / "thesis.tex").exists()


@pytest.mark.parametrize("key", ["", "../x", "a/b", ".hidden"])
def test_bad_keys(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="must consist of"):
        PartialRun(tmp_path / "out", {}).put(key, {})
