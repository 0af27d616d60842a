"""Whole runs: kept, rejected, damaged; killed and restarted; with a model behind HTTP and without; read by training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from curate_case import CONFIG, SIZE, Counting, agreeable, equal, files, film, said, server, tracked
from worldline.data.curate import pipeline, report, sources
from worldline.data.curate.endpoint import Endpoint, EndpointRefused
from worldline.data.curate.language import LanguageJudge, read_prompts
from worldline.data.curate.record import SUFFIX, read_record
from worldline.data.curate.release import PUBLISHED
from worldline.io.video import load_video
from worldline.render.splat import splat


def tools(track: Any, **change: Any) -> pipeline.Tools:
    return pipeline.Tools(track=track, tracker=lambda name: {"exact": 1}, splat=splat, **change)


def differences(mine: dict[str, bytes], theirs: dict[str, bytes]) -> list[str]:
    """Files that are not the same: bytes, but of videos the pictures (x264 may need a byte more for the same ones)."""

    def shown(data: bytes) -> torch.Tensor:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(data)
            file.flush()
            return load_video(Path(file.name)).frames

    found = [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    both = mine.keys() & theirs.keys()
    return [n for n in found if not (n in both and n.endswith(".mp4") and equal(shown(mine[n]), shown(theirs[n])))]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good clips, a short one, a damaged one, and the first again."""
    folder = tmp_path_factory.mktemp("films")
    film(folder / "a.mp4", 1)
    film(folder / "deep" / "b.mp4", 2)
    film(folder / "short.mp4", 3, frames=3)
    whole = film(folder / "torn.mp4", 4).read_bytes()
    (folder / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "twin.mp4").write_bytes((folder / "a.mp4").read_bytes())
    return folder


@pytest.fixture(scope="module")
def done(films: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], Counting]:
    out, track = tmp_path_factory.mktemp("out"), Counting()
    clips = pipeline.run(sources.find([films]), out, tools(track), CONFIG)
    report.write_report(out, report.summary(clips, CONFIG, {"asked": "x"}))
    return out, clips, track


def test_every_clip_is_accounted_for(done: tuple[Path, list[dict[str, Any]], Counting]) -> None:
    out, clips, track = done
    assert [(c["source"], c["outcome"]) for c in clips] == [
        ("a", "kept"), ("deep/b", "kept"), ("short", "short"), ("torn", "damaged"), ("twin", "duplicate")
    ]  # fmt: skip
    assert track.names == ["a", "deep/b"] and "a" in clips[4]["why"] and "6" in clips[2]["why"]
    assert {p.name for p in (out / "samples").iterdir()} == {
        f"{name}{ending}" for name in ("000001", "000002") for ending in (*PUBLISHED, SUFFIX)
    }
    assert {p.stem for p in (out / "sheets").iterdir()} == {"000001", "000002"}
    assert not list((out / "stages.partial").glob("track-*"))


def test_the_report_counts_everything(done: tuple[Path, list[dict[str, Any]], Counting]) -> None:
    out, clips, _ = done
    found = json.loads((out / "report.json").read_text())
    assert found["videos"] == 5 and sum(found["outcomes"].values()) == 5 and found["outcomes"]["kept"] == 2
    assert {row["gate"]: row["failed"] for row in found["gates"]}["still"] == 0
    assert found["bytes"]["published"] > 3 * found["bytes"]["record"] > 0
    assert 0 < found["record_error"]["largest_px"] < 0.1 and found["judged_by"] == {"rules": 2}
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert 'src="sheets/000001.png"' in page and "| torn | damaged" in text and "One thing moves" in page


def test_a_second_run_does_nothing_again(films: Path, done: tuple[Path, list[dict[str, Any]], Counting]) -> None:
    out, clips, _ = done
    before, track = files(out), Counting()
    again = pipeline.run(sources.find([films]), out, tools(track), CONFIG)
    assert again == clips and not track.names and files(out) == before


def test_lost_files_are_made_again_and_new_videos_get_new_ids(films: Path, tmp_path: Path) -> None:
    out, track = tmp_path / "out", Counting()
    first = sources.find([films / "deep"])
    pipeline.run(first, out, tools(track), CONFIG)
    before = files(out)
    (out / "samples" / "000001.txt").unlink()
    more = [*sources.find([films / "a.mp4"]), *first]
    clips = pipeline.run(more, out, tools(track), CONFIG)
    assert [c["id"] for c in clips] == ["000002", "000001"] and track.names == ["b", "a", "b"]
    different = differences(before, files(out))
    assert "index.json" in different and all("000002" in name for name in different if name != "index.json")


def test_other_gates_need_no_other_tracks(films: Path, tmp_path: Path) -> None:
    out, track, video = tmp_path / "out", Counting(), sources.find([films / "a.mp4"])
    config = replace(CONFIG, keep_cache=True, layout="compact")
    strict = replace(config, gates=replace(config.gates, still=0.5))
    rejected = pipeline.run(video, out, tools(track), strict)[0]
    assert (rejected["outcome"], rejected["gate"]) == ("rejected", "still") and not (out / "samples").exists()
    kept = pipeline.run(video, out, tools(track), config)[0]
    assert kept["outcome"] == "kept" and track.names == ["a"]
    assert {p.name for p in (out / "samples").iterdir()} == {"000001.mp4", "000001.txt", "000001_record.npz"}
    pipeline.run(video, out, tools(track), strict)
    assert not list((out / "samples").iterdir())  # a sample that no longer passes does not stay


def test_a_tracker_that_fails_is_named_and_asked_again(films: Path, tmp_path: Path) -> None:
    def fails(name: str, video: Any, size: Any) -> Any:
        raise ValueError("nothing to see")

    video = sources.find([films / "a.mp4"])
    clip = pipeline.run(video, tmp_path / "o", tools(fails), CONFIG)[0]
    assert (clip["outcome"], clip["why"]) == ("untracked", "nothing to see")
    assert pipeline.run(video, tmp_path / "o", tools(Counting()), CONFIG)[0]["outcome"] == "kept"


def killed(films: Path, out: Path, where: str, number: int) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    command = [sys.executable, str(here / "curate_killed.py"), str(films), str(out), where, str(number)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_killed_between_stages_and_restarted_it_gives_the_same(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    for where, number in (("measure", 3), ("write", 1)):  # the first clip's measuring, then its writing
        assert killed(films, out, where, number).returncode == -9
        assert not (out / "clips" / "000001.json").exists()
    assert list((out / "stages.partial").glob("track-*"))
    clips = pipeline.run(sources.find([films]), out, tools(track := Counting()), CONFIG)
    report.write_report(out, report.summary(clips, CONFIG, {}))
    assert track.names == ["deep/b"]  # what the killed runs had tracked is taken from them
    whole = tmp_path / "whole"
    clips = pipeline.run(sources.find([films]), whole, tools(Counting()), CONFIG)
    report.write_report(whole, report.summary(clips, CONFIG, {}))
    assert not differences(files(out), files(whole))


def seeing(url: str) -> LanguageJudge:
    endpoint = Endpoint(url=url, retries=1, sleep=lambda s: None, timeout_seconds=10.0)
    return LanguageJudge(endpoint=endpoint, model="seer", prompts=read_prompts())


def test_a_model_behind_http_writes_captions_and_rejects_before_tracking(films: Path, tmp_path: Path) -> None:
    def picky(question: Any, headers: Any, number: int) -> Any:
        if isinstance(question["messages"][0]["content"], list):
            return said("Water falls." if picky.seen() else "Two dogs <run> over a lawn.")  # type: ignore[attr-defined]
        countable = "dogs" in question["messages"][0]["content"]
        return said(
            json.dumps({"countable": countable, "entities": [], "reason": "water" if not countable else "dogs"})
        )

    described: list[int] = []
    picky.seen = lambda: bool(described) or described.append(1)  # type: ignore[attr-defined]
    with server(picky) as (url, asked):
        track, out = Counting(), tmp_path / "out"
        model = tools(track, judge=seeing(url), questions=1)
        clips = pipeline.run(sources.find([films]), out, model, CONFIG)
        assert [c["outcome"] for c in clips[:2]] == ["kept", "rejected"] and clips[1]["gate"] == "countable"
        assert track.names == ["a"] and len(asked) == 4
        assert (out / "samples" / "000001.txt").read_text() == "Two dogs <run> over a lawn.\n"
        assert read_record(out / "samples" / f"000001{SUFFIX}").facts["caption_source"] == "seer"
        pipeline.run(sources.find([films]), out, model, CONFIG)
        assert len(asked) == 4  # nobody is asked twice
        report.write_report(out, report.summary(clips, CONFIG, {}))
        assert "Two dogs &lt;run&gt;" in (out / "report.html").read_text()


def test_clips_without_an_answer_are_counted_and_asked_about_again(films: Path, tmp_path: Path) -> None:
    video, out = sources.find([films / "a.mp4"]), tmp_path / "out"
    with server(lambda *a: (503, {}, {})) as (url, _):
        clip = pipeline.run(video, out, tools(Counting(), judge=seeing(url)), CONFIG)[0]
    assert clip["outcome"] == "unjudged" and "503" in clip["why"]
    with server(agreeable) as (url, _):
        assert pipeline.run(video, out, tools(Counting(), judge=seeing(url)), CONFIG)[0]["outcome"] == "kept"
    with server(lambda *a: (401, {}, {})) as (url, _):
        with pytest.raises(EndpointRefused, match="key"):
            pipeline.run(video, tmp_path / "other", tools(Counting(), judge=seeing(url)), CONFIG)


def test_places_to_look_for_videos(films: Path, tmp_path: Path) -> None:
    assert [s.name for s in sources.find([films], limit=2)] == ["a", "deep/b"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sources.find([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no videos"):
        sources.find([tmp_path])


def test_training_takes_the_records(done: tuple[Path, list[dict[str, Any]], Counting], tmp_path: Path) -> None:
    from more4d_tiny import TINY
    from worldline.systems.more4d import recipes, train
    from worldline.systems.more4d.curated import curated, order

    out = done[0]
    recipe = recipes.mini(networks=TINY)
    stages = {stage.train.name: stage for stage in recipe.stages}
    short = tuple(
        replace(stages[name], train=replace(stages[name].train, steps=1, batch_size=2, precision="no", warmup_steps=0))
        for name in ("vae", "inpainter")  # pictures that move, videos with holes
    )
    trained = train.run(replace(recipe, stages=short), tmp_path / "run", source=curated(out))
    assert trained.finished
    motion = curated(out)(short[0], trained.model, "cpu")(0)
    assert motion.motion.shape == (2, TINY.frames, *TINY.size, 3)  # type: ignore[union-attr]
    assert float(motion.motion[:, 0].abs().max()) == 0 and 0.1 < float(motion.motion.abs().max()) < 1  # type: ignore[union-attr]
    later = curated(out)(stages["generator"], trained.model, "cpu")(0)
    assert stages["generator"].samples.startswith("motion") and type(later) is type(motion)
    holes = curated(out)(short[1], trained.model, "cpu")(0)
    assert 0.5 < float(holes.known.float().mean()) < 1  # type: ignore[union-attr]
    assert sorted(order(3, 3, 0, 7)) == [0, 1, 2] and order(3, 3, 0, 7) == order(3, 3, 0, 7)
    with pytest.raises(FileNotFoundError, match="records"):
        curated(tmp_path)


def test_a_clip_at_a_models_size_is_cut_not_stretched(done: tuple[Path, list[dict[str, Any]], Counting]) -> None:
    from worldline.geometry import camera
    from worldline.systems.more4d.curated import central, read_clip

    assert central((384, 512), (368, 512)) == (slice(8, 376), slice(0, 512))
    clip = read_clip(done[0] / "samples" / f"000001{SUFFIX}", 4, (16, 16))
    exact = tracked(sources.read_clip(done[0] / "samples" / "000001.mp4", CONFIG))
    assert clip.tracks.shape == (4, 16, 16, 3)
    uv = camera.project(clip.tracks[0].double(), clip.intrinsics[0])
    assert float((uv - camera.pixel_grid((16, 16), torch.float64)).abs().max()) <= 0.5 + 1e-4
    assert exact.tracks.cameras is not None
    old = exact.tracks.cameras.intrinsics[0, 0, 0] * 16 / SIZE[0]
    assert float((clip.intrinsics[0, 0, 0] - old).abs()) < 1e-6 and clip.caption.startswith("One thing moves")


@pytest.mark.parametrize("layout", ["released", "both"])
def test_the_dataset_adapter_reads_the_samples_back(
    done: tuple[Path, list[dict[str, Any]], Counting], tmp_path: Path, layout: str
) -> None:
    from worldline.data.adapters import convert

    for path in (done[0] / "samples").iterdir():
        if layout == "both" or not path.name.endswith(SUFFIX):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    scenes = list(convert("trajscene", tmp_path))
    exact = tracked(sources.read_clip(done[0] / "samples" / "000001.mp4", CONFIG)).tracks
    assert len(scenes) == 2 and scenes[0].size == SIZE and exact.cameras is not None
    assert float((scenes[0].extras["tracks"] - exact.points).abs().max()) < 1e-3
    assert equal(scenes[0].extras["visible_from_reference"], exact.visible)
    assert scenes[0].provenance.settings["caption"].startswith("One thing moves")
    found = scenes[0].cameras
    assert found is not None and torch.allclose(found.intrinsics[0], exact.cameras.intrinsics[0], atol=1e-3)
    moved = float(found.cam2world[-1, 0, 3])  # the published files have no cameras
    assert moved == (pytest.approx(0.1) if layout == "both" else 0.0)


def test_the_command_line(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    from worldline.cli import main

    for path, name in ((films / "a.mp4", "a"), (films / "deep" / "b.mp4", "deep/b")):
        clip = tracked(sources.read_clip(path, CONFIG)).tracks
        assert clip.cameras is not None
        target = tmp_path / "tracks" / f"{name}.npz"
        target.parent.mkdir(parents=True, exist_ok=True)
        world = {"points_world": clip.points.numpy(), "visible": clip.visible.numpy()}
        np.savez(target, **world, cam2world=clip.cameras.cam2world.numpy())
    common = [str(films), "-o", str(tmp_path / "o"), "--tracks", str(tmp_path / "tracks"), "--frames", "6"]
    common += ["--size", "32x48", "--archives", "--limit", "4"]
    assert main(["data", "curate", *common]) == 0
    said_out = capsys.readouterr()
    assert "2 kept, 1 short, 1 damaged" in said_out.out and "torn: damaged" in said_out.err
    assert (tmp_path / "o" / "archives" / "000001-000002.tar.gz").is_file()
    for words, message in (
        (["--endpoint", "http://127.0.0.1:9"], "needs --model"),
        (["--model", "m"], "needs --endpoint"),
        (["--size", "big"], "not a size"),
        (["--limit", "0"], "at least 1"),
        (["--layout", "compact"], "archives"),
    ):
        assert main(["data", "curate", *common, *words]) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    with server(agreeable) as (url, asked):
        words = ["--endpoint", url, "--model", "seer", "--judge-model", "reader", "--json"]
        assert main(["data", "curate", *common, *words]) == 0
    assert json.loads(capsys.readouterr().out)["outcomes"]["kept"] == 2 and len(asked) == 4
    assert (tmp_path / "o" / "samples" / "000002.txt").read_text().startswith("Two dogs")
