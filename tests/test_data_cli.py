"""`worldline data`: conversion that resumes and names damage, checks, statistics, mixtures, training on stores."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from small_scenes import ball_scene
from worldline.cli import main
from worldline.data import conversion
from worldline.data.build import BuildConfig, Job, build
from worldline.data.clips import Clip, DamagedFile, Sequence
from worldline.data.store import ClipStore, ShardWriter, begin
from worldline.geometry import pointmap
from worldline.scene import Scene4D

SIZE = (40, 60)
Answer = Callable[[], dict]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    return lambda: json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine frames of the ball scene in the layout of the HoloLens excerpt."""
    root = tmp_path_factory.mktemp("hololens")
    scene = ball_scene(9, SIZE)
    assert scene.cameras is not None
    depth = pointmap.scene_depth(scene) * scene.valid
    for folder in ("images", "depth"):
        (root / folder).mkdir()
    for t in range(9):
        Image.fromarray(scene.video.frames[t].numpy()).save(root / "images" / f"{t:05d}.png")
        millimetres = (depth[t] * 1000).round().numpy().astype(np.uint16)
        Image.fromarray(millimetres).save(root / "depth" / f"{t:05d}.png")
    np.savetxt(root / "poses.txt", scene.cameras.cam2world.reshape(9, 16).numpy())
    np.savetxt(root / "K.txt", scene.cameras.intrinsics[0].numpy())
    return root


def test_a_dataset_becomes_a_store_and_damage_is_named(dataset: Path, tmp_path: Path, answer: Answer) -> None:
    store, words = tmp_path / "store", ["data", "convert", "hololens", str(dataset), "--frames", "3", "--json"]
    healthy = (dataset / "depth" / "00004.png").read_bytes()
    try:
        (dataset / "depth" / "00004.png").write_bytes(healthy[: len(healthy) // 2])
        assert main([*words, "-o", str(store)]) == 1, "the exit code says that something is missing"
        said = answer()
        assert said["clips"] == 2 and said["frames"] == 6
        (skipped,) = said["skipped"]
        assert skipped["file"].endswith("depth/00004.png") and skipped["clip"].endswith("000003-000005")
        names = [entry.name for entry in ClipStore(store).entries]
        assert len(names) == 2 and all("000003" not in name for name in names), "nothing takes its place"
    finally:
        (dataset / "depth" / "00004.png").write_bytes(healthy)
    assert main([*words, "-o", str(store)]) == 2, "a finished store is not touched"
    assert main([*words, "-o", str(store), "--retry"]) == 0
    said = answer()
    assert (said["clips"], said["resumed"], said["skipped"]) == (3, 2, [])
    assert main(["data", "check", str(store), "--pairs", "2", "--json"]) == 0
    checked = answer()
    assert checked["failed"] == 0 and all(row["score"] > 0.9 for row in checked["clips"])
    assert main(["data", "stats", str(store), "--sample", "1", "--json"]) == 0
    (row,) = answer()
    assert row["clips"] == 3 and row["frames"] == 9 and row["sizes"] == {"40x60": 3} and row["flags"]["metric"] == 3
    assert 0.3 < row["sampled"]["valid_share"] < 1 and 2 < row["sampled"]["depth_1_50_99"][1] < 9


def test_damage_in_a_store_fails_its_check_and_only_there(tmp_path: Path, answer: Answer) -> None:
    storage, _ = begin(tmp_path / "s", {})
    scene = ball_scene(4, SIZE)
    wrong = ball_scene(4, SIZE)
    wrong.points[2] *= 0.7
    with ShardWriter(storage) as writer:
        for name, one in (("good", scene), ("torn", scene), ("wrong", wrong)):
            writer.add(name, Clip(scene=one))
    from worldline.data.store import finish

    entries = {entry.name: entry for entry in finish(storage, {})}
    shard = next((tmp_path / "s" / "shards").glob("*.bin"))
    data = bytearray(shard.read_bytes())
    data[entries["torn"].table[0] - 30] ^= 1
    shard.write_bytes(data)
    words = ["data", "check", str(tmp_path / "s"), "--json", "--out", str(tmp_path / "report")]
    assert main(words) == 1
    rows = {row["clip"]: row for row in answer()["clips"]}
    assert {name: row["verdict"] for name, row in rows.items()} == {"good": "passes", "torn": "fails", "wrong": "fails"}
    assert "clip torn is damaged" in rows["torn"]["damage"][0] and rows["torn"]["score"] == 0
    picture = Image.open(rows["wrong"]["picture"])
    assert picture.width == 1440 and json.loads((tmp_path / "report" / "report.json").read_text())["clips"]
    before = (tmp_path / "report" / "checked.jsonl").read_text()
    assert main([*words, "--match", "good"]) == 0 and answer()["clips"][0]["verdict"] == "passes"
    assert (tmp_path / "report" / "checked.jsonl").read_text() == before, "what was tested is not tested again"


def test_synthetic_scenes_mixtures_and_training_on_them(tmp_path: Path, answer: Answer,
                                                        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    store = str(tmp_path / "store")
    words = ["data", "synthesize", "-o", store, "--clips", "3", "--frames", "8", "--size", "24x32", "--json"]
    assert main(words) == 0 and answer()["clips"] == 3
    entries = ClipStore(store).entries
    assert all({"flow", "synthetic", "metric"} <= entry.flags and entry.caption for entry in entries)
    mix = str(tmp_path / "mix.json")
    assert main(["data", "mix", f"{store}:2", "--needs", "flow", "--split", "train", "-o", mix, "--json"]) == 0
    assert answer()["sources"][0] == {"store": store, "share": 1.0, "clips": 3, "frames": 24}
    assert main(["data", "mix", store, "--needs", "wings", "-o", str(tmp_path / "x.json")]) == 2
    assert "fits flags wings" in capsys.readouterr().err and not (tmp_path / "x.json").exists()
    run = str(tmp_path / "run")
    train = ["train", "motioncrafter-mini", "--out", run, "--device", "cpu", "--fraction", "0.001", "--json"]
    assert main([*train, "--data", mix, "--minutes", "1e-9"]) == 0
    assert not answer()["finished"] and "mix.json" in (Path(run) / "geometry-vae.jsonl").read_text()
    assert main([*train, "--data", store, "--resume"]) == 2, "a run goes on with its own data only"
    capsys.readouterr()
    assert main(["train", "flow-mini", "--out", str(tmp_path / "f"), "--data", store, "--device", "cpu"]) == 2
    assert "renders its own scenes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "nosuch", "/tmp", "-o", "x"], "Unknown data set 'nosuch'"),
        (["convert", "tartanair", "/nowhere", "-o", "x"], "There is no folder /nowhere"),
        (["convert", "tartanair"], "needs a dataset, its folder and -o STORE"),
        (["check", "/nowhere"], "There is no clip store at /nowhere"),
        (["stats", "/nowhere"], "There is no clip store at /nowhere"),
        (["view", "/nowhere"], "There is no clip store at /nowhere"),
        (["mix", "/nowhere:0", "-o", "m.json"], "must be a positive number"),
        (["synthesize", "-o", "x", "--category", "dragons"], "There is no category 'dragons'"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and not list(tmp_path.iterdir())


def _still(seed: int) -> Scene4D:
    return ball_scene(2, (8 + seed, 12))


def _broken(path: str) -> Scene4D:
    raise DamagedFile(path, "is empty")


def _stumbles() -> Scene4D:
    raise KeyError("pose")


def test_workers_make_what_one_process_makes(tmp_path: Path) -> None:
    jobs = [Job(name=f"{seed}", make=partial(_still, seed)) for seed in range(3)]
    jobs += [Job(name="b", make=partial(_broken, "b.png")), Job(name="c", make=_stumbles)]
    told: list[tuple[str, int, int]] = []
    two = build(tmp_path / "two", jobs, {}, BuildConfig(workers=2), lambda *step: told.append(step))
    one = build(tmp_path / "one", jobs, {})
    for name, size in (("0", (8, 12)), ("1", (9, 12)), ("2", (10, 12))):
        pair = [ClipStore(tmp_path / place)[name].scene() for place in ("one", "two")]
        assert pair[0].size == size and torch.equal(pair[0].points, pair[1].points)
    assert len(one.entries) == len(two.entries) == 3
    assert two.skipped == one.skipped and [str(item) for item in one.skipped] == [
        "b.png: is empty (clip b is left out)", "c: KeyError: 'pose' (clip c is left out)"]  # fmt: skip
    assert told[-1] == ("clips", 5, 5)
    with pytest.raises(ValueError, match="Two clips would have one name"):
        build(tmp_path / "same", [jobs[0], jobs[0]], {})
    with pytest.raises(ValueError, match="No clip could be made: b.png: is empty"):
        build(tmp_path / "none", [jobs[3]], {})


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_and_the_run_goes_on_later(tmp_path: Path) -> None:
    jobs = [Job(name="0", make=partial(_still, 0)), Job(name="1", make=partial(os._exit, 9))]
    with pytest.raises(OSError, match=r"A worker died \(exit code 9"):
        build(tmp_path / "s", jobs, {}, BuildConfig(workers=2))
    again = [jobs[0], Job(name="1", make=partial(_still, 1))]
    assert [entry.name for entry in build(tmp_path / "s", again, {}).entries] == ["0", "1"]


def test_sequences_that_cannot_be_cut_are_cut_after_reading() -> None:
    scene = ball_scene(6, SIZE)

    def read(start: int, stop: int) -> Scene4D:
        assert (start, stop) == (0, 6)
        return scene

    whole = Sequence(name="s", frames=6, read=read, cuttable=False)
    first, second = conversion._of_sequence(whole, 3)
    assert (first.name, second.name) == ("s/000000-000002", "s/000003-000005")
    part = second.make()
    assert isinstance(part, Clip) and part.scene.cameras is not None and part.scene.flow_valid is not None
    torch.testing.assert_close(part.scene.cameras.cam2world[0], torch.eye(4, dtype=torch.float64))
    assert scene.cameras is not None
    local = pointmap.to_camera(scene.points[3].double(), scene.cameras.cam2world[3].double())
    torch.testing.assert_close(part.scene.points[0][scene.valid[3]], local[scene.valid[3]].float())
    assert not part.scene.flow_valid[-1].any() and part.scene.flow_valid[0].any()
