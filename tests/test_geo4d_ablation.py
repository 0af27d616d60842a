"""The ablation: one modality alone, rows that share windows, judging that hides nothing, tables that add up."""

from __future__ import annotations

import json
import math
from copy import copy
from dataclasses import dataclass, replace

import pytest
import torch

from geo4d_tiny import SMALL, live, video
from worldline.align.observation import Observation
from worldline.cli import main
from worldline.data.synthetic import render_clip
from worldline.evaluation import ablation as judging
from worldline.evaluation import ablation_tables as tables
from worldline.evaluation.baselines import plane, still_scene
from worldline.geometry import fit, pointmap, pose
from worldline.systems.geo4d import ablation, alone, pretrained
from worldline.systems.geo4d import infer as g4
from worldline.systems.geo4d import representation as rep
from worldline.systems.geo4d.infer import InferConfig
from worldline.systems.geo4d.networks import Geo4D, build

WINDOWS = (range(0, 6), range(3, 9), range(4, 10))


@pytest.fixture(scope="module")
def model() -> Geo4D:
    torch.manual_seed(1)
    return live(build(SMALL))


@pytest.fixture(scope="module")
def truth():
    return render_clip(4, frames=10, size=(24, 32))


def observed(truth, window: range) -> Observation:
    """What a perfect model says about a window: its own frame, its own unit, its own scale and shift of disparity."""
    clip, unit = truth.select(list(window)), 1.0 + 0.3 * window.start
    cameras = clip.cameras
    pictures = rep.to_pictures(
        clip.points[None], clip.valid[None], cameras.intrinsics[None], cameras.cam2world[None], moment_gain=unit
    )
    depth = pointmap.depth_of(clip.points, cameras.cam2world).where(clip.valid, torch.tensor(1e4))
    rays = rep.read_rays(pictures.ray_direction[0].double(), pictures.ray_moment[0].double(), 1.0)
    return Observation(
        frames=tuple(window),
        points=torch.zeros_like(clip.points),
        confidence=torch.ones_like(depth),
        disparity=(1 / depth - 0.1 * unit) / unit,
        ray_direction=rays[0],
        ray_moment=rays[1],
    )


# --- one modality alone


def test_disparity_windows_become_one(truth):
    found = alone.join_disparity([observed(truth, window) for window in WINDOWS], 10)
    depth = pointmap.depth_of(truth.points, truth.cameras.cam2world)
    scale, shift = fit.scale_shift_l1(found[truth.valid], 1 / depth[truth.valid])
    torch.testing.assert_close((scale * found + shift)[truth.valid], (1 / depth)[truth.valid], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", ["paper", "published"])
def test_ray_windows_become_one_path(truth, method):
    found = alone.join_cameras([observed(truth, window) for window in WINDOWS], 10, method)
    expected = truth.cameras.cam2world.double()
    similarity = alone.similarity_of_poses(found, expected)
    moved = similarity.apply_pose(found)
    path = float((expected[:, :3, 3] - expected[:, :3, 3].mean(0)).norm(dim=-1).max())
    assert float((moved - expected)[:, :3, 3].norm(dim=-1).max()) < 1e-3 * path
    assert float(pose.rotation_angle_deg(moved[:, :3, :3], expected[:, :3, :3]).max()) < 0.05


@pytest.mark.parametrize("count", [1, 4])
def test_cameras_that_stand_still_are_joined_by_their_rotations(count):
    turn = pose.from_rt(pose.so3_exp(torch.tensor([0.1, -0.4, 0.2]).double()), torch.tensor([1.0, 2.0, 3.0]).double())
    source = torch.eye(4).double().repeat(count, 1, 1)
    found = alone.similarity_of_poses(source, turn @ source)
    torch.testing.assert_close(found.apply_pose(source), turn @ source)
    assert float(found.scale) == 1.0


def test_a_modality_that_is_not_there_and_a_gap_are_said(truth):
    first, last = (observed(truth, window) for window in (range(0, 4), range(4, 10)))
    for join, gone in (
        (alone.join_disparity, replace(first, disparity=None)),
        (alone.join_cameras, replace(first, ray_direction=None, ray_moment=None)),
    ):
        with pytest.raises(ValueError, match="alone need"):
            join([gone], 4)
        with pytest.raises(ValueError, match="shares no frame"):
            join([first, last], 10)
        with pytest.raises(ValueError, match="a window for every frame"):
            join([first], 10)


# --- rows


@pytest.fixture
def told(monkeypatch) -> list[int]:
    """How many windows each alignment was given; the alignment itself, tested elsewhere, says nothing."""
    given = []

    class Quick:
        def scene(self, video, provenance):
            return still_scene(video, plane(video.size), "quick", 0.1)

    monkeypatch.setattr(g4.alignment, "solve", lambda windows, *rest, **options: given.append(len(windows)) or Quick())
    return given


def test_points_are_decoded_as_asked(model, monkeypatch):
    decoded = []
    original = model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda z: decoded.append(z) or original(z))
    observe = lambda kind: g4.Observer(video(4), model, InferConfig(point_decoder=kind)).observe(range(4))  # noqa: E731
    own, certain = observe("uncertain"), observe("certain")
    assert len(decoded) == 6  # three other modalities, twice
    common = observe("common")
    assert len(decoded) == 10
    known = own.confidence > 0
    assert torch.equal(own.points[known], certain.points[known])
    assert not torch.allclose(common.points[known], own.points[known])
    assert float(own.confidence[known].std()) > 0
    for found in (certain, common):
        assert torch.allclose(found.confidence[found.confidence > 0], torch.tensor(1.0))


def test_a_model_that_does_not_denoise_has_neither_steps_nor_seeds(model):
    settled = copy(model)
    settled.config = replace(model.config, deterministic=True)
    rows = list(ablation.rows(video(8), settled, InferConfig(final="clean"), seeds=(0, 1)))
    assert {row.seed for row in rows} == {0}
    tables = {row.table for row in rows}
    assert ablation.STEP_TABLE not in tables and len(tables) == 3
    assert not any("as one" in row.name for row in rows)


def test_windows_are_seen_once_for_all_rows_that_can_share_them(model, monkeypatch, told):
    observed_windows = []
    original = g4.Observer.observe
    monkeypatch.setattr(
        g4.Observer, "observe", lambda self, window: observed_windows.append(window) or original(self, window)
    )
    rows = list(ablation.rows(video(8), model, InferConfig(final="clean"), seeds=(0, 1)))
    assert not observed_windows  # nothing is made before it is asked for
    by_table: dict[str, list] = {}
    for row in rows:
        by_table.setdefault(row.table, []).append(row)
    answers = {(row.name, row.seed): row.answer() for row in by_table[ablation.MODALITY_TABLE]}
    assert [w.start for w in observed_windows] == 3 * [0, 2, 4]  # two seeds, and both as one
    assert answers["disparity", 0].cam2world is None and answers["rays", 0].disparity is None
    assert answers["points", 0].disparity.shape == (8, 16, 24) and answers["rays", 0].cam2world.shape == (8, 4, 4)
    assert not torch.equal(answers["disparity", 0].disparity, answers["disparity", 1].disparity)
    assert told == 9 * [3]  # four rows for each of two seeds, and both as one
    observed_windows.clear()
    strides = {row.name: row.answer() for row in by_table[ablation.STRIDE_TABLE]}
    assert list(strides) == ["stride 3", "stride 2", "stride 1"]
    assert sorted(w.start for w in observed_windows) == [1, 3]  # those that stride 2 has not seen
    assert told[9:] == [3, 3, 5] and strides["stride 1"].seconds > strides["stride 3"].seconds
    assert {row.frames for row in by_table[ablation.STEP_TABLE]} == {4}


def test_every_finding_and_every_reference_names_rows_that_exist(model):
    config = InferConfig(final="clean")
    for window in (4, 8, 16):
        wide = build(replace(SMALL, window=window, stride=window // 4, steps=1), meta=True)
        rows = {(row.table, row.name) for row in ablation.rows(video(window + 1), wide, config)}
        for claim in ablation.claims(window):
            assert {(claim.table, claim.better), (claim.table, claim.worse)} <= rows
            assert claim.better != claim.worse and claim.metric in judging.METRICS
        for table in {table for table, _ in rows}:
            assert (table, ablation.reference(table, wide, config)) in rows


# --- judging


@dataclass(frozen=True, kw_only=True)
class Said:
    disparity: torch.Tensor | None = None
    cam2world: torch.Tensor | None = None
    seconds: float = 3.0


def asked(answer, *, says=("depth", "cameras"), frames=6, name="row", table="t", seed=0) -> ablation.Row:
    return ablation.Row(table=table, name=name, seed=seed, frames=frames, says=says, answer=answer)


@pytest.fixture(scope="module")
def clip() -> judging.Truth:
    return next(judging.held_out_clips(1, 6, (16, 24)))


def right(clip: judging.Truth, noise: float = 0.0) -> Said:
    turned = pose.se3_exp(torch.tensor([0.1, 0.2, 0.3, 1.0, 2.0, 3.0]).double())
    cameras = turned @ clip.cam2world.double()
    cameras[:, :3, 3] *= 7
    disparity = 3 / clip.depth.clamp(min=1e-3) + 2
    return Said(disparity=disparity * (1 + noise * torch.rand_like(disparity)), cam2world=cameras)


def test_the_truth_in_another_gauge_has_no_error(clip):
    score = judging.judge(asked(lambda: right(clip)), clip)
    assert score.failed == "" and score.seconds_per_frame == pytest.approx(0.5)
    assert score.values["abs_rel"] < 1e-2 and score.values["delta"] == 100.0
    assert score.values["ate"] < 1e-2 and score.values["rotation"] < 1e-2


def test_failures_are_kept(clip):
    def broken():
        raise RuntimeError("no\nwindow")

    score = judging.judge(asked(broken, says=("depth",)), clip)
    assert score.values == {"abs_rel": None, "delta": None} and score.failed == "RuntimeError: no window"
    bad = replace(right(clip), cam2world=torch.full((6, 4, 4), math.nan))
    score = judging.judge(asked(lambda: bad), clip)
    assert score.values["ate"] is None and score.values["abs_rel"] is not None and score.failed
    missing = judging.judge(asked(lambda: Said(cam2world=right(clip).cam2world)), clip)
    assert missing.values["abs_rel"] is None and "abs_rel" in missing.failed


def test_a_still_camera_is_not_asked_for_and_an_estimate_that_stands_still_is_judged(clip):
    still = replace(clip, cam2world=torch.eye(4).repeat(6, 1, 1))
    assert set(judging.judge(asked(lambda: right(still)), still).values) == {"abs_rel", "delta"}
    lazy = judging.camera_scores(torch.eye(4).repeat(6, 1, 1), clip)
    assert 0 < lazy["ate"] < 100
    first = clip.first(3)
    assert len(first.video) == 3 and first.depth.shape[0] == 3


def test_finished_clips_are_not_made_again(clip, tmp_path):
    kept, made = tmp_path / "scores" / "kept.jsonl", []

    def rows(truth):
        made.append(truth.seed)
        return [asked(lambda: right(truth, 0.1), name=name) for name in ("a", "b")]

    def go(*clips, **settings):
        return judging.run(clips, rows, total=len(clips), kept=kept, settings=settings)

    second = replace(clip, seed=clip.seed + 1)
    first = go(clip, weights="x")
    assert go(clip, second, weights="x")[:3] == first and made == [clip.seed, second.seed]
    assert [score.row for score in first] == [judging.TRIVIAL, "a", "b"]
    kept.write_text(kept.read_text()[:-40])  # killed while it was writing
    again = go(clip, second, weights="x")
    assert made == [clip.seed, second.seed, second.seed] and len(again) == 6
    assert len(go(clip, second, weights="x")) == 6 and len(made) == 3
    with pytest.raises(ValueError, match="other weights or settings"):
        go(clip, weights="y")
    kept.write_text("hello\n")
    with pytest.raises(ValueError, match="no file of ablation scores"):
        go(clip, weights="x")


# --- tables


def scored(row: str, clip: int, value: float | None, seed: int = 0) -> judging.Score:
    return judging.Score(clip=clip, table="t", row=row, seed=seed, values={"abs_rel": value}, seconds_per_frame=0.1)


def test_differences_are_paired_and_failures_counted():
    scores = [scored("ref", clip, 10.0 * clip) for clip in range(1, 5)]
    scores += [
        scored("worse", clip, 10.0 * clip + 1 + 0.1 * (clip % 2), seed=seed) for clip in (1, 2, 3) for seed in (0, 1)
    ]
    scores += [scored("worse", 4, None)]
    found = {line.row: line.cells["abs_rel"] for line in tables.lines(scores, lambda table: "ref")}
    assert found["ref"].mean == pytest.approx(25) and math.isnan(found["ref"].versus) and found["ref"].failed == 0
    worse = found["worse"]
    assert (worse.failed, worse.total) == (1, 7) and worse.seeds == 0
    assert worse.versus == pytest.approx(1 + 0.2 / 3)
    assert worse.versus_error == pytest.approx(float(torch.tensor([1.1, 1.0, 1.1]).std()) / 3**0.5, rel=1e-4)
    text = tables.markdown(tables.lines(scores, lambda table: "ref"), [], lambda table: "ref")
    assert "(6/7)" in text and "+1.07 ± " in text
    assert {row["failed"] for row in tables.rows(tables.lines(scores, lambda table: "ref"))} == {0, 1}


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([1.0, 1.1, 0.9], "holds"),
        ([-1.0, -1.1, -0.9], "does not hold"),
        ([5.0, -5.0, 1.0], "not decided"),
        ([1.0], "not"),
    ],
)
def test_a_finding_holds_only_beyond_its_error(gains, verdict):
    scores = [scored("good", clip, 20.0) for clip in range(len(gains))]
    scores += [scored("bad", clip, 20.0 + gain) for clip, gain in enumerate(gains)]
    claim = ablation.Claim(text="x", table="t", metric="abs_rel", better="good", worse="bad")
    answer = tables.verdicts(scores, [claim])[0]
    assert answer["verdict"].startswith(verdict) and answer["clips"] == len(gains)


def test_the_command_says_what_holds(model, tmp_path, capsys, told):
    path = pretrained.export(model, tmp_path / "small.safetensors", {})
    words = ["bench", "geo4d-ablation", "--weights", str(path), "--frames", "6", "--size", "16", "24"]
    words += ["--clips", "1", "--seeds", "1", "--kept", str(tmp_path / "kept.jsonl"), "--device", "cpu"]
    assert main([*words, "--json", "--markdown", str(tmp_path / "t.md")]) == 0
    answer = json.loads(capsys.readouterr().out)
    rows = {(row["table"], row["row"], row["metric"]): row for row in answer["rows"]}
    assert len({table for table, _, _ in rows}) == 4 and len(answer["findings"]) == len(ablation.claims(4))
    assert rows[ablation.MODALITY_TABLE, judging.TRIVIAL, "abs_rel"]["mean"] > 0
    assert "| finding of the paper | here |" in (tmp_path / "t.md").read_text()
    assert main([*words[:-2], "--frames", "4"]) == 2
    assert "--frames above 4" in capsys.readouterr().err
