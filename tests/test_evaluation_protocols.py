"""Protocols: truth in any allowed gauge is perfect, anything else is not, and nothing vanishes from a mean."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from worldline.evaluation import scoring
from worldline.evaluation.engine import TRUE_POSES, evaluate, evaluate_both, failed_reports
from worldline.evaluation.gauge import MEANING
from worldline.evaluation.metrics import METRICS, describe
from worldline.evaluation.page import html_page
from worldline.evaluation.pair import match_frames
from worldline.evaluation.protocols import PROTOCOLS
from worldline.evaluation.report import Report, summarize
from worldline.evaluation.resizing import resize_scene
from worldline.evaluation.tables import cell, markdown, rows
from worldline.geometry import camera, pointmap, pose
from worldline.scene import Cameras, Provenance, Scene4D, Video

V1 = PROTOCOLS["worldline-v1"]
# what truth itself does not bring to zero: the published target holds ego-motion, moving objects are not masked
PUBLISHED_FLOW = ("epe", "apd_0.03", "apd_0.05", "apd_0.1", "apd_0.3")
LEFT_OVER = {("vda-stability", "tae_percent"), *(("motioncrafter-world", metric) for metric in PUBLISHED_FLOW)}
SLOPPY = {"geo4d-depth": 2e-2, "monst3r-depth": 5e-3, "cut3r-scale": 1e-4}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def clip() -> Scene4D:
    """Waves with a near block that moves, sky above, a camera that travels and turns; double precision."""
    count, size = 6, (24, 36)
    rows, columns = torch.arange(24.0).double()[:, None], torch.arange(36.0).double()[None]
    time = torch.arange(count).double()[:, None, None]
    block = (columns > 8 + time) & (columns < 18 + time) & (rows > 10)
    depth = torch.where(block, 2.0, 5 + torch.sin(columns / 5 + time / 3) + torch.cos(rows / 4) + 0 * time)
    intrinsics = camera.intrinsics_from_focal(30.0, size).double().repeat(count, 1, 1)
    twist = torch.tensor([0.15, -0.05, 0.2, 0.02, 0.06, -0.01], dtype=torch.float64)
    poses = pose.se3_exp(time[:, 0] * twist)
    points = pose.transform(poses, pointmap.from_depth(depth, intrinsics))
    flow = torch.where(block[..., None], torch.tensor([0.2, 0.02, 0.05], dtype=torch.float64), 0.0)
    valid = (rows > 2).expand(count, *size).clone()
    visible = torch.rand(count, *size, generator=torch.Generator().manual_seed(1)) > 0.2
    return Scene4D(
        video=Video(
            frames=torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(2)),
            timestamps=torch.arange(count, dtype=torch.float64),
        ),
        points=points,
        valid=valid,
        scene_flow=flow,
        flow_valid=valid & (time < count - 1),
        cameras=Cameras(intrinsics=intrinsics, cam2world=poses, size=size),
        extras={"tracks": points[:1] + time[..., None] * flow[:1], "visible_from_reference": visible},
        provenance=Provenance(system="truth"),
    )


def moved(scene: Scene4D, twist: list[float], scale: float = 1.0) -> Scene4D:
    """The same scene in another world and unit."""
    assert scene.cameras is not None and scene.scene_flow is not None
    rigid = pose.se3_exp(torch.tensor(twist, dtype=torch.float64))
    cam2world = rigid @ scene.cameras.cam2world
    cam2world[:, :3, 3] *= scale
    extras = dict(scene.extras)
    if "tracks" in extras:
        extras["tracks"] = scale * pose.transform(rigid, extras["tracks"].double())
    return replace(
        scene,
        points=scale * pose.transform(rigid, scene.points),
        scene_flow=scale * pose.rotate(rigid[:3, :3], scene.scene_flow),
        cameras=replace(scene.cameras, cam2world=cam2world),
        extras=extras,
        provenance=Provenance(system="moved"),
    )


def with_depth(scene: Scene4D, change: Callable[[torch.Tensor], torch.Tensor]) -> Scene4D:
    """The scene with another depth along the same rays and cameras."""
    assert scene.cameras is not None
    depth = change(pointmap.depth_of(scene.points, scene.cameras.cam2world).clamp(min=1e-3))
    local = pointmap.from_depth(depth, scene.cameras.intrinsics)
    return replace(scene, points=pose.transform(scene.cameras.cam2world, local))


def perfect(metric: str, value: float, tolerance: float) -> bool:
    best = {"coverage_percent": 100.0}.get(metric, 1.0 if describe(metric).better == "higher" else 0.0)
    return abs(value - best) <= tolerance


def spoiled(scene: Scene4D) -> Scene4D:
    """A prediction that is wrong in everything, in ways no gauge absorbs."""
    assert scene.cameras is not None and scene.scene_flow is not None
    generator = torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    twists = 0.3 * noise(len(scene), 6)
    cameras = Cameras(
        intrinsics=scene.cameras.intrinsics * torch.tensor([1.2, 1.2, 1.0])[:, None],
        cam2world=scene.cameras.cam2world @ pose.se3_exp(twists),
        size=scene.size,
    )
    valid = scene.valid & (torch.rand(scene.valid.shape, generator=generator) > 0.1)
    bad = with_depth(scene, lambda depth: depth * torch.exp(0.5 * noise(*depth.shape)))
    tracks = scene.extras["tracks"].double() + 0.5 * noise(*scene.points.shape)
    return replace(
        bad,
        cameras=cameras,
        valid=valid,
        scene_flow=scene.scene_flow + 0.3 * noise(*scene.points.shape),
        extras={"tracks": tracks, "visible_from_reference": scene.extras["visible_from_reference"] & valid},
    )


# ------------------------------------------------------------------------------------------------------------ gauges


@pytest.mark.parametrize("name", PROTOCOLS)
def test_truth_in_another_world_and_unit_is_perfect(name: str) -> None:
    prediction = moved(clip(), [1.0, -2.0, 0.3, 0.2, 0.7, -0.1], scale=0.37)
    reports = evaluate_both(prediction, clip(), PROTOCOLS[name])
    own = evaluate(clip(), clip(), PROTOCOLS[name])
    assert own.measures
    for report in reports:
        for entry in report.measures:
            assert not entry.failed, entry
            if (name, entry.metric) in LEFT_OVER:
                assert not perfect(entry.metric, entry.value, 1e-3)
            elif entry.metric == "static_flow_percent":  # slow movers count as static: truth has some flow there
                assert entry.value == pytest.approx(own.value("static_flow_percent"), rel=1e-5, abs=1e-5)
            else:
                assert perfect(entry.metric, entry.value, SLOPPY.get(name, 1e-5)), entry


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_is_not_true_is_not_perfect(name: str) -> None:
    own, bad = evaluate(clip(), clip(), PROTOCOLS[name]), evaluate(spoiled(clip()), clip(), PROTOCOLS[name])
    for good, wrong in zip(own.measures, bad.measures, strict=True):
        assert (good.metric, good.alignment) == (wrong.metric, wrong.alignment)
        assert not wrong.failed
        if name == "motioncrafter-world" and good.metric in PUBLISHED_FLOW:
            continue
        if describe(good.metric).better == "lower":
            assert wrong.value > good.value + 1e-3, good.metric
        else:
            assert wrong.value < good.value - 1e-3, good.metric


def test_gauges_that_only_some_protocols_allow() -> None:
    affine = with_depth(clip(), lambda depth: 0.5 * depth - 0.4)
    inverse = with_depth(clip(), lambda depth: 1 / (2 / depth + 0.05))
    score = lambda scene, name: evaluate(scene, clip(), PROTOCOLS[name]).value("abs_rel")  # noqa: E731
    assert score(affine, "geo4d-depth") < 0.01 < 0.02 < score(affine, "cut3r-scale")
    assert score(inverse, "depthcrafter-disparity") < 1e-6 < 0.02 < score(inverse, "cut3r-scale")
    rotated = replace(moved(clip(), [0, 0, 0, 0, 0.3, 0]), cameras=None)  # a world prediction has no rotation to spare
    shifted = replace(moved(clip(), [1.0, 2.0, 3.0, 0, 0, 0], scale=4.0), cameras=None)
    world = PROTOCOLS["motioncrafter-world-corrected"]
    assert evaluate(shifted, clip(), world).value("rel_p") < 1e-6
    assert evaluate(rotated, clip(), world).value("rel_p") > 0.02


def test_true_poses_take_pose_errors_out_and_stand_beside_the_row() -> None:
    truth = clip()
    assert truth.cameras is not None
    drift = pose.se3_exp(torch.linspace(0, 1, len(truth)).double()[:, None] * torch.tensor([0.5, 0, 0, 0, 0.3, 0]))
    wrong = truth.cameras.cam2world @ drift
    local = pose.transform(pose.inverse(truth.cameras.cam2world), truth.points)
    prediction = replace(truth, points=pose.transform(wrong, local), cameras=replace(truth.cameras, cam2world=wrong))
    estimated, true = evaluate_both(prediction, truth, V1, system="drifting")
    assert true.system == "drifting" + TRUE_POSES
    assert estimated.value("rel_p") > 0.02 > 1e-6 > true.value("rel_p")
    assert "ate_percent_path" not in {entry.metric for entry in true.measures}
    assert len(evaluate_both(replace(prediction, cameras=None), truth, V1)) == 1


# ------------------------------------------------------------------------------------- frames, units, masks, failures


def test_permuting_frames() -> None:
    order = [3, 0, 5, 1, 4, 2]
    prediction = with_depth(clip(), lambda depth: depth * (1 + 0.3 * torch.sin(7 * depth)))
    for name in ("monst3r-depth", "cut3r-scale", "depthcrafter-disparity", "geometrycrafter"):
        protocol = PROTOCOLS[name]
        straight = evaluate(prediction, clip(), protocol).measures
        both = evaluate(prediction.select(order), clip().select(order), protocol).measures
        assert [entry.value for entry in both] == pytest.approx([entry.value for entry in straight], rel=1e-6)
    shuffled = evaluate(clip().select(order), clip(), PROTOCOLS["geo4d-pose"])
    assert shuffled.value("ate") > 0.01


def test_units_of_the_truth() -> None:
    prediction, millimetres = spoiled(clip()), moved(clip(), [0.0] * 6, scale=1000.0)
    first, second = (evaluate(prediction, truth, V1) for truth in (clip(), millimetres))
    for a, b in zip(first.measures, second.measures, strict=True):
        assert b.value == pytest.approx(a.value, rel=1e-4), a.metric  # ratios and percentages only
    metres, far = (evaluate(prediction, truth, PROTOCOLS["geo4d-pose"]) for truth in (clip(), millimetres))
    assert far.value("ate") == pytest.approx(1000 * metres.value("ate"), rel=1e-6)
    assert far.value("rpe_rotation_deg") == pytest.approx(metres.value("rpe_rotation_deg"), rel=1e-6)


def test_empty_masks_and_holes() -> None:
    truth, prediction = clip(), with_depth(clip(), lambda depth: depth * (1 + 0.3 * torch.sin(7 * depth)))
    blind = truth.valid.clone()
    blind[2] = False
    emptied = replace(truth, valid=blind, scene_flow=None, flow_valid=None)
    keep = [0, 1, 3, 4, 5]
    for name in ("worldline-v1", "monst3r-depth", "depthcrafter-disparity", "motioncrafter-world", "geometrycrafter"):
        report = evaluate(prediction, emptied, PROTOCOLS[name])
        without = evaluate(prediction.select(keep), emptied.select(keep), PROTOCOLS[name])
        for a, b in zip(report.measures, without.measures, strict=True):
            if not a.metric.startswith(("ate", "rpe")):
                assert a.value == pytest.approx(b.value, rel=1e-5), (name, a.metric)
    # a hole is a miss (relative error 1), and does not touch the fit
    half = truth.valid.clone()
    half[:, :, ::2] = False
    holes = evaluate(replace(truth, valid=half), truth, V1)
    share = float((truth.valid & ~half).sum() / truth.valid.sum())
    assert holes.value("abs_rel") == pytest.approx(share, rel=1e-6)
    assert holes.value("coverage_percent") == pytest.approx(100 * (1 - share), rel=1e-6)
    nothing = evaluate(replace(truth, valid=torch.zeros_like(truth.valid)), truth, V1)
    assert nothing.value("coverage_percent") == 0
    assert {entry.metric for entry in nothing.measures if not entry.failed} >= {"rpe_rotation_deg", "coverage_percent"}
    assert "nothing to align on" in next(entry.failed for entry in nothing.measures if entry.metric == "abs_rel")
    sky = replace(truth, valid=torch.zeros_like(truth.valid), flow_valid=torch.zeros_like(truth.valid))
    assert evaluate(prediction, sky, PROTOCOLS["geo4d-depth"]).measures == ()


def test_frames_are_matched_by_time() -> None:
    truth = clip()
    few = [1, 3, 4]
    prediction, matched = match_frames(truth.select(few), truth)
    assert torch.equal(matched.points, truth.points[few]) and len(prediction) == 3
    assert evaluate(truth.select(few), truth, V1).value("rel_p") < 1e-6
    late = replace(truth.select(few), video=replace(truth.video.select(few), timestamps=torch.arange(3).double() + 50))
    report = evaluate(late, truth, V1)
    assert all("reconstruct the same frames" in entry.failed for entry in report.measures)


def test_prediction_at_another_size() -> None:
    report = evaluate(resize_scene(clip(), (48, 72)), clip(), V1)  # every point twice in each direction
    assert report.value("focal_error_percent") < 1e-9
    assert report.value("abs_rel") < 1e-9
    assert report.value("coverage_percent") == 100
    small = evaluate(resize_scene(clip(), (12, 18)), clip(), V1)
    assert small.value("focal_error_percent") < 1e-9 and 1e-3 < small.value("abs_rel") < 0.1


def _reports(systems: dict[str, list[Scene4D]]) -> list[Report]:
    return [
        report
        for system, scenes in systems.items()
        for index, scene in enumerate(scenes)
        for report in evaluate_both(scene, clip(), V1, sequence=str(index), system=system)
    ]


def test_one_failing_sequence_changes_n_of_n_and_nothing_else() -> None:
    other = with_depth(clip(), lambda depth: depth * (1 + 0.3 * torch.sin(7 * depth)))
    reports = _reports({"a": [clip(), other], "b": [other, spoiled(clip())]})
    before = {(m.system, m.metric, m.alignment): m for m in summarize(reports)}
    broken = failed_reports(clip(), V1, sequence="2", system="a", reason="RuntimeError: out of memory")
    after = {(m.system, m.metric, m.alignment): m for m in summarize([*reports, *broken])}
    assert before.keys() == after.keys()
    for key, mean in after.items():
        old = before[key]
        assert (mean.value, mean.low, mean.high, mean.scored) == (old.value, old.low, old.high, old.scored)
        assert mean.total == old.total + (key[0] == "a")
    assert cell(after["a", "rel_p", "scale_shift3_l2/sequence"]).endswith("(2/3)")
    failed = [row for row in rows(broken)]
    assert failed and all(row["value"] is None and "out of memory" in row["failed"] for row in failed)


def test_nan_predictions_fail_instead_of_scoring() -> None:
    nan = replace(clip(), points=torch.full_like(clip().points, math.nan))
    failed = {entry.metric: entry.failed for entry in evaluate(nan, clip(), V1).measures}
    assert failed["abs_rel"] and failed["rel_p"] and failed["epe_percent"]
    no_flow = replace(clip(), scene_flow=None, flow_valid=None)
    failed = {entry.metric: entry.failed for entry in evaluate(no_flow, clip(), V1).measures}
    assert failed["epe_percent"] == "The prediction has no scene flow." and not failed["abs_rel"]


def test_averaging_by_valid_pixels() -> None:
    small = replace(clip(), valid=clip().valid & (torch.arange(36) < 6))
    bad = with_depth(clip(), lambda depth: depth * (1 + 0.3 * torch.sin(7 * depth)))
    protocol = PROTOCOLS["monst3r-depth"]
    reports = [evaluate(clip(), clip(), protocol, system="s"), evaluate(bad, small, protocol, system="s")]
    values, sizes = [r.value("abs_rel") for r in reports], [r.measures[0].n for r in reports]
    weighted, plain = (summarize(reports, how)[0].value for how in ("valid_pixels", "sequences"))
    assert weighted == pytest.approx(sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes))
    assert plain == pytest.approx(sum(values) / 2) and weighted < plain


# ------------------------------------------------------------------------------------------- tables, pages, documents


def _score(protocols: list[str]) -> list[Report]:
    def broken(video: object) -> Scene4D:
        raise RuntimeError("cannot <read> this")

    sequences = [
        scoring.Sequence4D(name="one", truth=clip, predictions={"good": lambda video: clip(), "bad": broken}),
        scoring.Sequence4D(name="two", truth=clip, predictions={"good": lambda video: spoiled(clip())}),
    ]
    chosen = [PROTOCOLS[name] for name in protocols]
    return scoring.score(sequences, chosen, systems=["good", "bad"], pictures=True)


def test_table_has_failures_trivial_predictors_and_true_poses() -> None:
    reports = _score(["worldline-v1", "geo4d-pose"])
    systems = {report.system for report in reports}
    assert {"good", "bad", "good" + TRUE_POSES} <= systems
    assert len([name for name in systems if name.startswith("trivial")]) == 4
    means = {(m.protocol, m.system, m.metric): m for m in scoring.summarize_each(reports, list(PROTOCOLS.values()))}
    assert (means["worldline-v1", "bad", "rel_p"].scored, means["worldline-v1", "bad", "rel_p"].total) == (0, 2)
    assert means["worldline-v1", "good", "rel_p"].total == 2
    assert means["worldline-v1", "trivial: plane", "epe_moving_over_zero"].value == pytest.approx(1.0)
    still = means["geo4d-pose", "trivial: plane", "ate"]
    assert (still.scored, still.total) == (0, 2)  # evo cannot align it; here that is a failed row
    reasons = {row["failed"] for row in rows(reports) if row["system"] == "bad"}
    assert reasons == {"cannot <read> this", scoring.MISSING}


def test_page_is_self_contained() -> None:
    reports = _score(["worldline-v1"])
    means = scoring.summarize_each(reports, [V1])
    page = html_page(reports, means, [V1])
    text = re.sub(r"data:image/png;base64,[\w+/=]+", "", page)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(|src='[^']", text)
    assert page.count("data:image/png;base64,") >= 4 and page.count("<svg") >= 2
    assert "cannot &lt;read&gt; this" in page and "<read>" not in page
    table = markdown(means, [V1])
    assert "– (0/2)" in table and "trivial: plane" in table and "| 2 |" in table


def test_data_set_settings() -> None:
    protocol = PROTOCOLS["geo4d-depth"]
    assert protocol.on("kitti").parts != protocol.parts and protocol.on(None) is protocol
    with pytest.raises(ValueError, match="it knows: sintel, bonn, kitti"):
        protocol.on("nowhere")
    named = replace(clip(), provenance=Provenance(system="truth", settings={"dataset": "kitti"}))
    alignments = {entry.alignment for entry in evaluate(clip(), named, protocol).measures}
    assert alignments == {"scale_shift_adam_1e-4_1000/sequence"}


def test_every_name_is_explained() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "evaluation.md").read_text()
    for protocol in PROTOCOLS.values():
        assert protocol.source and protocol.pitfall
        assert f"`{protocol.name}`" in page, protocol.name
        for part in protocol.parts:
            for metric, alignment in part.names():
                describe(metric)
                assert alignment.split("/")[0].removeprefix("disparity.") in MEANING, alignment
    for name in METRICS:
        assert f"`{name}`" in page, name
    for name in MEANING:
        assert f"`{name}`" in page, name
