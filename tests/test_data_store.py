"""The clip store: what goes in comes out, from disk and URL; partial reads; kills and damage are seen."""

from __future__ import annotations

import pickle
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_scenes import ball_scene
from worldline.data.clips import Clip, DamagedFile, PointTracks, ranges, reading
from worldline.data.store import ClipStore, ShardWriter, begin, finish, index
from worldline.io import chunks
from worldline.io.storage import Storage
from worldline.scene import Provenance, Scene4D

SETTINGS = {"made of": "balls"}


def masked(scene: Scene4D) -> Scene4D:
    """Zeros where nothing is known, which is all that the store promises about such pixels."""
    assert scene.scene_flow is not None and scene.flow_valid is not None
    return replace(
        scene,
        points=scene.points * scene.valid[..., None],
        scene_flow=scene.scene_flow * scene.flow_valid[..., None],
    )


def make(place: str | Path, clips: dict[str, Clip], **options: Any) -> ClipStore:
    storage, _ = begin(place, SETTINGS)
    with ShardWriter(storage, **options) as writer:
        for name, clip in clips.items():
            writer.add(name, clip)
    finish(storage, SETTINGS)
    return ClipStore(place)


@pytest.fixture(scope="module")
def ball() -> Scene4D:
    scene = masked(ball_scene(6, (30, 44)))
    facts = {"dataset": "toys", "split": "train", "synthetic": True, "caption": "a ball rolls by"}
    identities = torch.randint(-1, 5, (6, 30, 44))
    return replace(
        scene,
        provenance=Provenance(system="truth", settings=facts, source="toys/ball"),
        extras={"object_id": identities, "tracks": torch.rand(6, 30, 44, 3)},
    )


@pytest.fixture(scope="module")
def clip(ball: Scene4D) -> Clip:
    known = torch.rand(6, 9) > 0.3
    points = torch.randn(6, 9, 3) * known[..., None]
    return Clip(scene=ball, tracks=PointTracks(points=points, known=known, visible=known & (torch.rand(6, 9) > 0.5)))


def assert_same(a: Scene4D, b: Scene4D, exact: bool = True) -> None:
    assert a.cameras is not None and b.cameras is not None
    assert b.cameras.cam2world.dtype == torch.float64, "poses are float64"
    torch.testing.assert_close(a.cameras.cam2world.double(), b.cameras.cam2world, rtol=0, atol=0)
    torch.testing.assert_close(a.cameras.intrinsics.double(), b.cameras.intrinsics, rtol=0, atol=0)
    assert torch.equal(a.video.frames, b.video.frames) and torch.equal(a.video.timestamps, b.video.timestamps)
    assert torch.equal(a.valid, b.valid)
    away = a.points.abs().amax(-1).clamp(min=1)
    assert float(((a.points - b.points).abs().amax(-1) / away).max()) <= (0 if exact else 1e-6)
    for name in ("scene_flow", "flow_valid", "confidence"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.scale == b.scale and a.provenance == b.provenance
    assert set(a.extras) == set(b.extras) and all(torch.equal(a.extras[n], b.extras[n]) for n in a.extras)


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_clip_comes_back_whole_and_in_parts(clip: Clip, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "store" if kind == "disk" else f"memory://store-{uuid.uuid4().hex}"
    store = make(place, {"toys/ball": clip, "toys/again": clip})
    assert [entry.name for entry in store.entries] == ["toys/again", "toys/ball"]
    entry = store.entries[1]
    assert (entry.dataset, entry.split, entry.caption) == ("toys", "train", "a ball rolls by")
    assert entry.frames == 6 and entry.size == (30, 44) and entry.intrinsics == (44.0, 44.0, 21.5, 14.5)
    assert entry.flags == {
        "metric",
        "cameras",
        "points",
        "flow",
        "tracks",
        "dense_tracks",
        "moving_camera",
        "synthetic",
    }
    assert "depth" in entry.arrays and "points" not in entry.arrays, "a third of the bytes"
    stored = store["toys/ball"]
    whole = stored.read()
    assert_same(clip.scene, whole.scene, exact=False)
    assert whole.tracks is not None and clip.tracks is not None
    assert torch.equal(whole.tracks.points, clip.tracks.points)
    assert torch.equal(whole.tracks.visible, clip.tracks.visible)
    part = pickle.loads(pickle.dumps(store))["toys/ball"].read(slice(2, 5))
    assert_same(clip.select(slice(2, 5)).scene, part.scene, exact=False)
    assert part.scene.flow_valid is not None and not part.scene.flow_valid[-1].any()
    assert part.tracks is not None and torch.equal(part.tracks.known, clip.tracks.known[2:5])
    few = stored.read(slice(0, 2), fields={"rgb"}).scene
    assert few.scene_flow is None and not few.valid.any() and torch.equal(few.video.frames, clip.scene.video.frames[:2])


def test_reading_a_window_touches_only_its_bytes(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path / "s", {"ball": clip})
    stored, size = store["ball"], store.entries[0].bytes
    read: list[int] = []
    original = Storage.read_ranges

    def counted(self: Storage, name: str, spans: Any) -> list[bytes]:
        parts = original(self, name, spans)
        read.append(sum(map(len, parts)))
        return parts

    monkeypatch.setattr(Storage, "read_ranges", counted)
    stored.read(slice(3, 4), fields={"rgb", "points"})
    assert 0 < sum(read) < size / 10


def test_points_that_no_camera_gives_back_are_stored_as_they_are(ball: Scene4D, tmp_path: Path) -> None:
    moved = replace(ball, points=(ball.points + 0.01) * ball.valid[..., None])
    store = make(tmp_path / "s", {"off": Clip(scene=moved), "blind": Clip(scene=replace(ball, cameras=None))})
    assert all("points" in entry.arrays and "depth" not in entry.arrays for entry in store.entries)
    assert_same(moved, store["off"].scene())
    assert torch.equal(store["blind"].scene().points, ball.points) and store["blind"].scene().cameras is None
    nothing = replace(ball, valid=torch.zeros_like(ball.valid), scene_flow=None, flow_valid=None)
    empty = make(tmp_path / "e", {"cameras only": Clip(scene=nothing)})
    assert not {"points", "depth"} & set(empty.entries[0].arrays) and "points" not in empty.entries[0].flags
    assert not empty["cameras only"].scene().valid.any() and len(empty["cameras only"].scene()) == len(ball)


def test_far_poses_and_points_keep_their_millimetres(ball: Scene4D, tmp_path: Path) -> None:
    """float16 poses lose 0.5 m here, float32 ones 0.1 mm; the store's are exact (spec motioncrafter 6.4)."""
    assert ball.cameras is not None
    far = ball.cameras.cam2world.double().clone()
    far[:, 0, 3] += 1000 + 1e-7
    cameras = replace(ball.cameras, cam2world=far, intrinsics=ball.cameras.intrinsics.double())
    scene = replace(ball, cameras=cameras, valid=torch.zeros_like(ball.valid), points=torch.zeros_like(ball.points))
    back = make(tmp_path / "s", {"far": Clip(scene=scene)})["far"].scene().cameras
    assert back is not None and torch.equal(back.cam2world, far)


def test_a_value_that_is_valid_and_not_finite_is_refused(ball: Scene4D, tmp_path: Path) -> None:
    points = ball.points.clone()
    points[2, 20, 20] = torch.nan
    assert ball.valid[2, 20, 20]
    storage, _ = begin(tmp_path / "s", SETTINGS)
    with ShardWriter(storage) as writer:
        with pytest.raises(ValueError, match="point map of a clip is not finite"):
            writer.add("bad", Clip(scene=replace(ball, points=points)))
        writer.add("good", Clip(scene=ball))
    assert [entry.name for entry in finish(storage, SETTINGS)] == ["good"]
    assert_same(ball, ClipStore(tmp_path / "s")["good"].scene(), exact=False)


def test_a_killed_run_keeps_its_finished_shards(clip: Clip, tmp_path: Path) -> None:
    place = tmp_path / "s"
    storage, done = begin(place, SETTINGS)
    assert not done

    class Killed(BaseException):
        pass

    with pytest.raises(Killed), ShardWriter(storage, shard_bytes=1) as writer:
        writer.add("a", clip)
        writer.add("b", clip)
        writer._limit = 1 << 30
        writer.add("c", clip)
        raise Killed
    with pytest.raises(ValueError, match="unfinished clip store; run the command"):
        ClipStore(place)
    assert len(ClipStore(place, partial=True)) == 2
    (place / "shards" / "0000.bin").write_bytes(b"a shard without an index")
    victim = sorted((place / "shards").glob("*.json"))[0]
    victim.write_text(victim.read_text()[:-40])  # torn by the kill: it does not count
    storage, done = begin(place, SETTINGS)
    assert len(done) == 1
    with ShardWriter(storage) as writer:
        for name in sorted({"a", "b", "c"} - done):
            writer.add(name, clip)
    finish(storage, SETTINGS)
    assert [entry.name for entry in ClipStore(place).entries] == ["a", "b", "c"]
    assert len(list((place / "shards").iterdir())) == 4, "two shards and their indices; nothing left over"


def test_other_settings_never_mix(clip: Clip, tmp_path: Path) -> None:
    make(tmp_path / "s", {"ball": clip})
    with pytest.raises(FileExistsError, match="already holds a clip store; choose another"):
        begin(tmp_path / "s", SETTINGS)
    begin(tmp_path / "t", {"made of": "cubes"})
    with pytest.raises(FileExistsError, match="in the making, of other settings"):
        begin(tmp_path / "t", SETTINGS)
    (tmp_path / "s" / "mine.txt").write_text("keep me")
    _, done = begin(tmp_path / "s", {"made of": "cubes"}, overwrite=True)
    assert not done and sorted(p.name for p in (tmp_path / "s").rglob("*.*")) == ["mine.txt", "settings.json"]
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "photo.jpg").write_text("not yours")
    with pytest.raises(FileExistsError, match="is no clip store"):
        begin(tmp_path / "u", SETTINGS, overwrite=True)
    with pytest.raises(FileNotFoundError, match="There is no clip store at"):
        ClipStore(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot be opened"):
        ClipStore("nosuchprotocol://bucket/store")


def test_every_flipped_bit_is_found_and_named(clip: Clip, tmp_path: Path) -> None:
    store = make(tmp_path / "s", {"a": clip, "b": clip})
    assert not any(found for _, found in store.damages())
    entry = store.entries[0]
    file = tmp_path / "s" / index.shard_file(entry.shard)
    row = store["a"].metadata["arrays"]["scene_flow"]
    healthy = file.read_bytes()
    at = row["offset"] + sum(row["lengths"][:3]) + 7
    for position in (at, at + row["lengths"][3] - 8):  # in the data, in the checksum
        broken = bytearray(healthy)
        broken[position] ^= 1
        file.write_bytes(broken)
        fresh = ClipStore(tmp_path / "s")
        with pytest.raises(ValueError, match=r"clip a is damaged: frame 3 of scene_flow cannot be read .*checksum"):
            fresh["a"].read()
        assert len(fresh["a"].read(slice(0, 3)).scene) == 3 and len(fresh["b"].read().scene) == 6
        found = {e.name: [(d.array, d.frame) for d in bad] for e, bad in fresh.damages()}
        assert found == {"a": [("scene_flow", 3)], "b": []}
    file.write_bytes(healthy[: entry.table[0] + 5])
    found = {e.name: [d.array for d in bad] for e, bad in ClipStore(tmp_path / "s").damages()}
    assert found["a"] == [""] and found["b"], "a cut file: the table is gone, and the clips after it"
    text = (tmp_path / "s" / "index.json").read_text()
    (tmp_path / "s" / "index.json").write_text(text.replace('"frames": 6', '"frames": 7'))
    with pytest.raises(ValueError, match=r"index.json is damaged"):
        ClipStore(tmp_path / "s")


def test_chunks_are_the_bytes_that_zarr_writes(tmp_path: Path) -> None:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    arrays = (np.random.rand(9, 7, 3).astype("f4"), np.zeros((9, 7), bool), np.arange(63, dtype="u1").reshape(9, 7))
    for number, array in enumerate(arrays):
        compressors = [BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()]
        stored = zarr.create_array(str(tmp_path / str(number)), shape=array.shape, chunks=array.shape,
                                   dtype=array.dtype, compressors=compressors,
                                   config={"write_empty_chunks": True})  # fmt: skip
        stored[...] = array
        (chunk,) = (file for file in (tmp_path / str(number)).rglob("*") if file.is_file() and file.suffix != ".json")
        assert chunk.read_bytes() == chunks.encode(array)
        assert np.array_equal(chunks.decode(chunks.encode(array), array.dtype, array.shape), array)
    with pytest.raises(chunks.DamagedChunk, match="holds 63 bytes, not the 64"):
        chunks.decode(chunks.encode(arrays[2]), np.uint8, (64,))


def test_a_damaged_file_says_its_name_and_nothing_twice() -> None:
    with pytest.raises(DamagedFile, match=r"^a/b.png: the file is missing$"), reading("a/b.png"):
        raise FileNotFoundError("no such thing")
    with pytest.raises(DamagedFile, match=r"^a/b.png: is cut short$"), reading("a/b.png"):
        raise ValueError("a/b.png is cut short".replace("a/b.png is", "a/b.png: is"))
    with pytest.raises(MemoryError), reading("a/b.png"):
        raise MemoryError
    error = pickle.loads(pickle.dumps(DamagedFile("x", "is bad")))
    assert (str(error.path), error.reason) == ("x", "is bad")


def test_ranges_are_even_and_cover_everything() -> None:
    assert ranges(10, None) == [(0, 10)] and ranges(10, 10) == [(0, 10)]
    assert ranges(11, 10) == [(0, 6), (6, 11)] or ranges(11, 10) == [(0, 5), (5, 11)]
    for frames in (1, 2, 151, 299, 1000):
        parts = ranges(frames, 150)
        assert (
            parts[0][0] == 0
            and parts[-1][1] == frames
            and all(a[1] == b[0] for a, b in zip(parts, parts[1:], strict=False))
        )
        assert all(b - a <= 150 for a, b in parts)
    with pytest.raises(ValueError, match="need 2 frames or more"):
        ranges(10, 1)
