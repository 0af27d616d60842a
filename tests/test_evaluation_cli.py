"""`worldline evaluate` and `worldline bench systems` from the command line, on clips of a few pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.cli import bench, main
from worldline.evaluation import baselines, benchmark
from worldline.evaluation.baselines import TRIVIAL
from worldline.evaluation.benchmark import Clip, missing_real, real_clips, run_suites
from worldline.evaluation.protocols.suites import REAL_V1, SEED_START, SYNTHETIC_V1, WORLDLINE_V1, SyntheticClip
from worldline.evaluation.report import summarize
from worldline.io import store
from worldline.scene import Provenance, Scene4D, Video

ROW = {"suite", "sequence", "system", "metric", "alignment", "value", "n", "failed"}


def small_truth(seed: int = 0) -> Scene4D:
    """A ramp with a bump, seen by a camera that goes forward; static."""
    generator = torch.Generator().manual_seed(seed)
    video = Video(frames=torch.rand(4, 16, 24, 3, generator=generator), timestamps=torch.arange(4, dtype=torch.float64))
    bump = 1 + 0.3 * torch.rand(16, 24, generator=generator)
    return replace(
        baselines.still_scene(video, 3 * baselines.ramp((16, 24)) * bump, "truth", speed=0.1),
        provenance=Provenance(system="truth"),
    )


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Truth of two sequences; a system that got the first right and the second not at all."""
    truth, system = tmp_path / "truth", tmp_path / "mine"
    for index, name in enumerate(("first", "second")):
        store.save(small_truth(index), truth / name)
    store.save(small_truth(0), system / "first")
    return system, truth


def test_evaluate_writes_every_format(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system, truth = folders
    page, table = tmp_path / "report.html", tmp_path / "report.md"
    words = ["evaluate", str(system), "--truth", str(truth), "--protocol", "worldline-v1,geo4d-pose"]
    assert main([*words, "--html", str(page), "--markdown", str(table)]) == 0
    shown = capsys.readouterr()
    assert "(1/2)" in shown.out and "there is no prediction for this sequence" in shown.err
    assert "trivial: plane" in shown.out and "mine + true poses" in shown.out
    assert page.read_text().startswith("<!doctype html>") and "(1/2)" in table.read_text()
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(set(row) == ROW for row in rows)
    mine = {(r["sequence"], r["metric"]): r for r in rows if r["system"] == "mine" and r["suite"] == "worldline-v1"}
    assert mine["first", "rel_p"]["value"] < 1e-6 and mine["first", "rel_p"]["failed"] is None
    assert mine["second", "rel_p"]["value"] is None and mine["second", "rel_p"]["failed"]


def test_evaluate_all_protocols_of_one_other_tools_file(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, truth = folders
    np.savez(tmp_path / "out.npz", point_map=small_truth(0).points.numpy())
    words = [
        "evaluate",
        str(tmp_path / "out.npz"),
        "--truth",
        str(truth / "first"),
        "--no-trivial",
        "--protocol",
        "all",
    ]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    rows = {(row["suite"], row["metric"]): row for row in json.loads(captured.out)}
    assert rows["motioncrafter-world", "rel_p"]["value"] < 1e-6
    assert rows["geo4d-pose", "ate"]["failed"] == "The prediction has no cameras."
    assert rows["motioncrafter-world-corrected", "epe"]["failed"] == "The prediction has no scene flow."
    assert "tapvid3d: the truth has nothing this protocol measures." in captured.err


def test_evaluate_explains_bad_input(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system, truth = folders
    for words, message in (
        ([str(system)], "Give predictions and --truth"),
        ([str(system), "--truth", str(tmp_path / "no")], "nothing at"),
        ([str(system), "--truth", str(truth), "--protocol", "best"], "There is no protocol 'best'"),
        (
            [str(system), "--truth", str(truth), "--protocol", "geo4d-depth", "--dataset", "mars"],
            "no settings for data",
        ),
        ([str(system), str(system), "--truth", str(truth)], "different names"),
    ):
        assert main(["evaluate", *words]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    store.save(small_truth(), tmp_path / "other" / "third")
    assert main(["evaluate", str(tmp_path / "other"), "--truth", str(truth)]) == 2
    assert "give predictions the names of their sequences" in capsys.readouterr().err


def test_protocols_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--protocol", "list"]) == 0
    assert "motioncrafter-world-corrected" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- suites


def _clips(count: int) -> list[Clip]:
    truths = [small_truth(index) for index in range(count)]
    return [
        Clip(suite="test", name=str(i), seed=i, video=t.video, truth=t, protocol=WORLDLINE_V1)
        for i, t in enumerate(truths)
    ]


def test_suite_keeps_failures_trivial_predictors_and_costs() -> None:
    def fails_once(video: Video, seed: int) -> Scene4D:
        if seed == 1:
            raise MemoryError("no room")
        return small_truth(seed)

    def always_right(video: Video, seed: int) -> Scene4D:
        return small_truth(seed)

    reports = run_suites(_clips(3), {"flaky": fails_once, "right": always_right}, parameters={"right": 7})
    means = {(mean.system, mean.metric): mean for mean in summarize(reports)}
    assert means["flaky", "rel_p"].value == means["right", "rel_p"].value < 1e-6
    assert (means["flaky", "rel_p"].scored, means["flaky", "rel_p"].total) == (2, 3)
    assert (means["right", "rel_p"].scored, means["right", "rel_p"].total) == (3, 3)
    assert (means["flaky", "seconds_per_frame"].scored, means["flaky", "seconds_per_frame"].total) == (2, 3)
    assert means["right", "seconds_per_frame"].value > 0 and means["right", "parameters"].value == 7
    reasons = {m.failed for r in reports if r.system == "flaky" for m in r.measures if m.failed}
    assert reasons == {"MemoryError: no room"}
    for name in TRIVIAL:
        assert means[name, "abs_rel"].total == 3 and means[name, "abs_rel"].value > 0.01
    assert all(set(row) == ROW for report in reports for row in report.rows())
    nan = run_suites(
        _clips(1), {"nan": lambda v, s: replace(small_truth(s), points=torch.full((4, 16, 24, 3), torch.nan))}
    )
    failed = {m.metric for r in nan if r.system == "nan" for m in r.measures if m.failed}
    assert {"rel_p", "abs_rel", "boundary_f1"} & failed


def test_fixed_suites() -> None:
    assert len(SYNTHETIC_V1) == 64 and len({clip.seed for clip in SYNTHETIC_V1}) == 64
    assert min(clip.seed for clip in SYNTHETIC_V1) == SEED_START == 1_000_000_000
    counts = {
        category: sum(c.category == category for c in SYNTHETIC_V1) for category in {c.category for c in SYNTHETIC_V1}
    }
    assert len(counts) == 10 and min(counts.values()) >= 6
    assert len({clip.name for clip in REAL_V1}) == len(REAL_V1)


def test_synthetic_clip_is_rendered_as_described() -> None:
    entry = SyntheticClip(category="object_only", seed=SEED_START + 4, frames=3, size=(16, 24))
    (clip,) = benchmark.synthetic_clips([entry])
    assert clip.name == "object_only-1000000004" and clip.video.size == (16, 24) and len(clip.video) == 3
    reports = run_suites([clip], {"truth": lambda video, seed: clip.truth}, trivial=False)
    metrics = {measure.metric for measure in reports[0].measures}
    assert "ate_percent_path" not in metrics and "ate_percent_scene" in metrics  # the camera stands still
    assert reports[0].value("rel_p") < 1e-5


@pytest.mark.shared
def test_real_clips(shared_data: Path) -> None:
    chosen = [replace(entry, count=2) for entry in REAL_V1 if entry.name in ("slambook-ch5", "deepdeform-shirt")]
    clips = list(real_clips(shared_data, chosen))
    assert [clip.name for clip in clips] == ["slambook-ch5", "deepdeform-shirt"]
    for clip in clips:
        assert clip.video.size[0] == 240 and clip.truth.size[0] == 120 and bool(clip.truth.valid.any())
    reports = run_suites(clips, {}, trivial=True)
    assert "rpe_rotation_deg" in {m.metric for r in reports if r.sequence == "slambook-ch5" for m in r.measures}
    assert "rpe_rotation_deg" not in {m.metric for r in reports if r.sequence == "deepdeform-shirt" for m in r.measures}


def test_real_clips_that_are_not_here_are_named(tmp_path: Path) -> None:
    assert missing_real(None) == missing_real(tmp_path) == [entry.name for entry in REAL_V1]
    assert list(real_clips(tmp_path)) == []


def test_bench_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tuple(SyntheticClip(category="both", seed=SEED_START + i, frames=3, size=(16, 24)) for i in range(2))
    monkeypatch.setattr("worldline.evaluation.protocols.suites.SYNTHETIC_V1", tiny)
    (tmp_path / "data").mkdir()
    words = ["bench", "systems", "--suite", "all", "--systems", "none", "--data", str(tmp_path / "data")]
    assert main([*words, "--markdown", str(tmp_path / "out.md")]) == 0
    captured = capsys.readouterr()
    assert "skipped" in captured.err and "tartanair-45" in captured.err and "trivial: y-ramp" in captured.out
    assert "### synthetic-v1" in (tmp_path / "out.md").read_text()
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["suite"] for row in rows} == {"synthetic-v1"} and all(set(row) == ROW for row in rows)
    assert main([*words[:3], "real-v1", "--systems", "none", "--data", str(tmp_path / "no")]) == 2
    assert "no data folder" in capsys.readouterr().err
    assert main(["bench", "systems", "--systems", "nobody", "--only", "both"]) == 2
    assert "no system 'nobody'" in capsys.readouterr().err


def test_data_folder_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bench.DATA_VARIABLE, str(tmp_path))
    assert bench.data_folder(None) == tmp_path
    other = tmp_path / "other"
    other.mkdir()
    assert bench.data_folder(other) == other
    monkeypatch.setenv(bench.DATA_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="no data folder"):
        bench.data_folder(None)
