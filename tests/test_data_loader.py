"""The loader: batches are a pure function of seed and index, and show the truth of the stored clips at another size."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from small_scenes import ball_scene
from worldline.data import mixture, resample
from worldline.data.clips import Clip
from worldline.data.loader import ClipBatch, Loader, LoaderConfig, View
from worldline.data.mixture import Mixture, Source
from worldline.data.store import ShardWriter, begin, finish, index
from worldline.geometry import camera, pointmap, pose, sceneflow
from worldline.scene import Provenance, Scene4D

SIZE = (40, 60)


def named(scene: Scene4D, dataset: str, split: str = "train") -> Scene4D:
    facts = {"dataset": dataset, "split": split, "caption": f"a {dataset}"}
    return replace(scene, provenance=Provenance(system="truth", settings=facts))


@pytest.fixture(scope="module")
def ball() -> Scene4D:
    return named(ball_scene(9, SIZE), "ball")


@pytest.fixture(scope="module")
def still(ball: Scene4D) -> Scene4D:
    """No flow, stored as points (they are off their pixels), relative scale."""
    moved = replace(ball, points=ball.points + 0.02, scene_flow=None, flow_valid=None, scale="relative")
    return named(moved, "still", "val")


def store_of(place: str | Path, scenes: dict[str, Scene4D]) -> str:
    storage, _ = begin(place, {})
    with ShardWriter(storage) as writer:
        for name, scene in scenes.items():
            writer.add(name, Clip(scene=scene))
    finish(storage, {})
    return str(place)


@pytest.fixture(scope="module")
def stores(ball: Scene4D, still: Scene4D, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("stores")
    short = ball.select(slice(0, 2))
    return store_of(root / "a", {"ball": ball, "short": short}), store_of(root / "b", {"still": still})


def loader(*sources: Source, **config: object) -> Loader:
    views = config.pop("views", (View(frames=4, size=SIZE),))
    return Loader(Mixture(sources=sources), LoaderConfig(views=views, **config))  # type: ignore[arg-type]


def assert_equal(a: ClipBatch, b: ClipBatch) -> None:
    assert a.names == b.names and a.captions == b.captions
    for name in ("rgb", "points", "valid", "scene_flow", "flow_valid", "intrinsics", "cam2world", "fps", "metric"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_a_batch_at_the_stored_size_is_the_stored_truth(ball: Scene4D, stores: tuple[str, str]) -> None:
    batch = loader(Source(store=stores[0]), batch_size=2)(3)
    assert ball.cameras is not None and ball.scene_flow is not None and ball.flow_valid is not None
    for b, name in enumerate(batch.names):
        assert name.startswith(f"{stores[0]}#ball@") and batch.captions[b] == "a ball"
        start = int(name.rsplit("@", 1)[1])
        frames = slice(start, start + 4)
        to_first = pose.inverse(ball.cameras.cam2world[start].double())
        assert torch.equal(batch.rgb[b], ball.video.frames[frames].float() / 255)
        assert torch.equal(batch.valid[b], ball.valid[frames])
        expected = pose.transform(to_first, ball.points[frames].double()).float() * ball.valid[frames][..., None]
        torch.testing.assert_close(batch.points[b], expected, rtol=0, atol=2e-5)
        turned = pose.rotate(to_first[:3, :3], ball.scene_flow[frames].double()).float()
        known = ball.flow_valid[frames].clone()
        known[-1] = False
        assert torch.equal(batch.flow_valid[b], known)
        torch.testing.assert_close(batch.scene_flow[b], turned * known[..., None], rtol=0, atol=1e-5)
        torch.testing.assert_close(batch.cam2world[b, 0], torch.eye(4))
    assert batch.fps.tolist() == pytest.approx([10, 10]) and batch.metric.all()


def test_batches_depend_on_seed_and_index_only(stores: tuple[str, str]) -> None:
    source = Source(store=stores[0])
    view = (View(frames=2, size=(20, 30)), View(frames=3, size=(10, 16), stride=2))
    options = {"views": view, "batch_size": 3, "zoom": (1.0, 1.5), "anywhere": True}
    once, again = loader(source, **options), loader(source, **options)
    in_order = [once(i) for i in range(6)]
    for i in (4, 1, 5):
        assert_equal(in_order[i], again(i))
    assert [tuple(b.rgb.shape[1:4]) for b in in_order[:2]] == [(2, 20, 30), (3, 10, 16)]
    others = [loader(source, seed=1, **options)(i) for i in range(6)]
    assert any(a.names != b.names for a, b in zip(in_order, others, strict=True))
    starts = {name for i in range(40) for name in (f"{d.entry.name}@{d.start}" for d in once.draw(2 * i))}
    assert starts == {*(f"ball@{i}" for i in range(8)), "short@0"}, "every window comes"


def test_workers_change_nothing_and_start_anywhere(stores: tuple[str, str]) -> None:
    source = Source(store=stores[0])
    plain = loader(source, batch_size=2)
    ahead = Loader(plain.mixture, replace(plain.config, workers=1), step=2)
    try:
        for i in (5, 7, 9):
            assert_equal(ahead(i), plain(i))
    finally:
        ahead.close()


def test_shares_are_shares_of_samples(ball: Scene4D, stores: tuple[str, str]) -> None:
    mixed = loader(Source(store=stores[0], ratio=3.0), Source(store=stores[1]), batch_size=10)
    drawn = [one.source for i in range(200) for one in mixed.draw(i)]
    assert abs(np.mean(drawn) - 0.25) < 0.03, "two clips against one, and yet three to one"
    batch = next(mixed(i) for i in range(9) if {d.source for d in mixed.draw(i)} == {0, 1})
    still = torch.tensor([name.startswith(stores[1]) for name in batch.names])
    assert not batch.flow_valid[still].any() and batch.flow_valid[~still].any()
    assert not batch.metric[still].any() and mixed.left_out == 1


@pytest.mark.parametrize("zoom", [1.0, 1.7])
def test_a_resized_clip_projects_onto_its_pixels_and_mixes_nothing(stores: tuple[str, str], zoom: float) -> None:
    size = (17, 23)
    for store in stores:
        config = {"views": (View(frames=3, size=size),), "zoom": (zoom, zoom), "anywhere": zoom > 1}
        batch = loader(Source(store=store), **config)(0)
        local = pose.transform(pose.inverse(batch.cam2world[0]), batch.points[0])
        off = camera.project(local, batch.intrinsics[0]) - camera.pixel_grid(size)
        limit = max(0.5, 0.5 * size[1] * zoom / SIZE[1]) + (0.01 if store == stores[0] else 0.3)  # 2 cm off
        assert float(off[batch.valid[0]].abs().max()) < limit
        depth = local[..., 2][batch.valid[0]]
        assert len(depth) > 50
        ball = batch.flow_valid & (batch.scene_flow.norm(dim=-1) > 1e-3)
        speed = batch.scene_flow[ball].norm(dim=-1)
        assert len(speed) == 0 or (speed - 0.15).abs().max() < 1e-4, "the ball's flow or none, never half of it"
        assert float(depth.min()) > 0


def test_picks_are_those_of_the_geometry_room() -> None:
    torch.manual_seed(3)
    for source, size in (((31, 44), (9, 13)), ((9, 13), (31, 44)), ((20, 20), (20, 20)), ((24, 36), (12, 18))):
        valid = torch.rand(source) > 0.4
        points = torch.rand(*source, 3) * valid[..., None]
        expected, found = pointmap.resize(points, valid, size)
        pixel, there = resample.picks(valid.numpy(), size)
        assert np.array_equal(there, found.numpy())
        got = points.reshape(-1, 3).numpy()[pixel] * there[..., None]
        distance = np.abs(got - expected.numpy()).max(-1)
        assert (distance > 0).mean() < 0.15, "only ties between equally near pixels may differ"
        if size == source:
            assert not distance.any()


def test_flow_over_a_stride_is_composed(ball: Scene4D, stores: tuple[str, str]) -> None:
    assert ball.cameras is not None and ball.scene_flow is not None and ball.flow_valid is not None
    view = View(frames=3, size=SIZE, stride=3)
    batch = loader(Source(store=stores[0]), views=(view,), batch_size=1)(0)
    start = int(batch.names[0].rsplit("@", 1)[1])
    k, poses = ball.cameras.intrinsics.double(), ball.cameras.cam2world.double()
    flow, valid = sceneflow.compose(ball.points.double(), ball.scene_flow.double(), ball.flow_valid, k, poses, 3)
    turn = pose.inverse(poses[start])[:3, :3]
    both = valid[start] & batch.flow_valid[0, 0]
    assert float((valid[start] == batch.flow_valid[0, 0]).float().mean()) > 0.99
    expected = pose.rotate(turn, flow[start]).float()
    torch.testing.assert_close(batch.scene_flow[0, 0][both], expected[both], rtol=0, atol=1e-4)
    moving = batch.scene_flow[0, 0].norm(dim=-1) > 0.1
    assert bool(moving.any()) and float(batch.scene_flow[0, 0][moving].norm(dim=-1).median()) == pytest.approx(0.45)
    assert not batch.flow_valid[:, -1].any()


def test_what_cannot_be_loaded_says_so(ball: Scene4D, stores: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No clip of .* the 25 frames that 25 of them at stride 1 need"):
        loader(Source(store=stores[0]), views=(View(frames=25, size=SIZE),))
    with pytest.raises(ValueError, match=r"None of the 1 clips of .* fits flags flow"):
        loader(Source(store=stores[1], needs=("flow",)))
    with pytest.raises(ValueError, match="fits split 'test'"):
        loader(Source(store=stores[0], split="test"))
    place = store_of(f"memory://loader-{uuid.uuid4().hex}", {"ball": ball})
    assert len(loader(Source(store=place))(0)) == 1
    with pytest.raises(ValueError, match="seen by one process only"):
        loader(Source(store=place), workers=1)
    broken = store_of(tmp_path / "broken", {"ball": ball})
    shard = next((tmp_path / "broken" / index.SHARDS).glob("*.bin"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 255
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="clip ball is damaged: frame 0 of rgb"):
        [loader(Source(store=broken))(i) for i in range(40)]


def test_mixture_files_are_validated(stores: tuple[str, str], tmp_path: Path) -> None:
    words = [f"{stores[0]}:3", stores[1], "s3://bucket/store:0.5", "gs://bucket/a"]
    mixed = mixture.parse(words)
    assert [(s.store, s.ratio) for s in mixed.sources] == [
        (stores[0], 3.0), (stores[1], 1.0), ("s3://bucket/store", 0.5), ("gs://bucket/a", 1.0)]  # fmt: skip
    path = tmp_path / "mix.json"
    chosen = Mixture(sources=(Source(store=stores[0], ratio=2.0, split="train", needs=("flow",)),))
    chosen.write(path)
    assert mixture.read(path) == chosen and mixture.parse([str(path)]) == chosen
    content = json.loads(path.read_text())
    for change, message in (
        ({"ratoi": 1}, "a source has no 'ratoi'"),
        ({"ratio": 0}, "must be a positive number"),
        ({"ratio": "much"}, "could not convert"),
    ):
        broken = {**content, "sources": [{**content["sources"][0], **change}]}
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            mixture.read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is no mixture of stores"):
        mixture.read(path)
    with pytest.raises(FileNotFoundError, match="`worldline data mix` writes one"):
        mixture.read(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="name one or more"):
        mixture.parse([])
