"""The fixed suites: clips with truth, every system on all of them, one table.

Systems come in as functions, so that this room knows none of them. Predictions are scored at once and not kept.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worldline.evaluation.baselines import TRIVIAL
from worldline.evaluation.efficiency import cost_measures, owed_costs, timed
from worldline.evaluation.engine import evaluate, evaluate_both, failed_reports
from worldline.evaluation.protocols.protocol import Protocol
from worldline.evaluation.protocols.suites import (
    REAL_V1,
    SYNTHETIC_V1,
    WORLDLINE_V1,
    RealClip,
    SyntheticClip,
)
from worldline.evaluation.report import Report
from worldline.evaluation.resizing import resize_scene, resize_video
from worldline.scene import Progress, Scene4D, Video, no_progress

Predictor = Callable[[Video, int], Scene4D]
"""(video, seed) -> scene: what a system is to a benchmark."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What a suite gives: a video for the systems, a truth for the judge.

    Attributes:
        suite: name of the suite.
        name: name of the row.
        seed: handed to the systems.
        video: what they see.
        truth: what is so.
        protocol: what is measured.
    """

    suite: str
    name: str
    seed: int
    video: Video
    truth: Scene4D
    protocol: Protocol


def run_suites(
    clips: Iterator[Clip] | Sequence[Clip],
    predictors: Mapping[str, Predictor],
    *,
    total: int = 0,
    parameters: Mapping[str, int] | None = None,
    trivial: bool = True,
    progress: Progress = no_progress,
) -> list[Report]:
    """Run every system, and the trivial predictors, on every clip.

    A system that raises, or whose numbers are not finite, has failed rows; the next clip goes on. Every system gets
    rows of cost. Reports are in the order of clips, then systems (true-pose rows beside them), then trivial predictors.

    Args:
        clips: from `synthetic_clips`, `real_clips`, or your own.
        predictors: systems by name.
        total: number of clips, for the progress only.
        parameters: number of weights by system.
        trivial: also run `baselines.TRIVIAL`.
        progress: told after every clip.
    """
    reports: list[Report] = []
    for done, clip in enumerate(clips, start=1):
        for name, predict in predictors.items():
            reports += run_one(clip, name, predict, (parameters or {}).get(name))
        for name, predict in TRIVIAL.items() if trivial else ():
            scene = predict(clip.video, clip.seed)
            report = evaluate(scene, clip.truth, clip.protocol, sequence=clip.name, system=name)
            reports.append(replace(report, protocol=clip.suite))
        progress(f"bench {clip.suite}", done, max(total, done))
    return reports


def run_one(clip: Clip, name: str, predict: Predictor, weights: int | None) -> list[Report]:
    """One system on one clip: its report with costs, and the one with true poses."""
    try:
        prediction, cost = timed(lambda: predict(clip.video, clip.seed))
    except Exception as error:  # noqa: BLE001 - a system may raise anything; the row says what it was
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        reports = failed_reports(clip.truth, clip.protocol, sequence=clip.name, system=name, reason=reason)
        extra = owed_costs(reason, weights)
    else:
        reports = evaluate_both(prediction, clip.truth, clip.protocol, sequence=clip.name, system=name)
        extra = cost_measures(cost, len(clip.video), weights)
    first = replace(reports[0], measures=(*reports[0].measures, *extra))
    return [replace(report, protocol=clip.suite) for report in (first, *reports[1:])]


def synthetic_clips(chosen: Sequence[SyntheticClip] = SYNTHETIC_V1) -> Iterator[Clip]:
    """Render the clips of `synthetic-v1` one after the other."""
    from worldline.data.synthetic import render_clip

    for entry in chosen:
        truth = render_clip(entry.seed, frames=entry.frames, size=entry.size, category=entry.category)
        yield Clip(
            suite="synthetic-v1",
            name=entry.name,
            seed=entry.seed,
            video=truth.video,
            truth=truth,
            protocol=WORLDLINE_V1,
        )


def real_clips(data: Path, chosen: Sequence[RealClip] = REAL_V1) -> Iterator[Clip]:
    """Read the clips of `real-v1` that lie below a folder; `missing_real` says which do not."""
    for index, entry in enumerate(chosen):
        if not (data / entry.folder).is_dir():
            continue
        truth = _real_truth(data, entry)
        height, width = truth.size
        rows = min(entry.rows, height)
        video = resize_video(truth.video, (rows, round(width * rows / height)))
        protocol = WORLDLINE_V1 if entry.parts is None else replace(WORLDLINE_V1, parts=entry.parts)
        truth = resize_scene(truth, (video.size[0] // 2, video.size[1] // 2))
        yield Clip(suite="real-v1", name=entry.name, seed=index, video=video, truth=truth, protocol=protocol)


def missing_real(data: Path | None, chosen: Sequence[RealClip] = REAL_V1) -> list[str]:
    """Names of the clips of `real-v1` whose folder is not there."""
    return [entry.name for entry in chosen if data is None or not (data / entry.folder).is_dir()]


def _real_truth(data: Path, entry: RealClip) -> Scene4D:
    adapter = importlib.import_module(f"worldline.data.adapters.{entry.adapter}")
    scenes = adapter.convert(data / entry.folder)
    found = next((s for s in scenes if s.provenance.source.endswith(entry.source)), None)
    if found is None:
        raise ValueError(f"{data / entry.folder} has no sequence '{entry.source}' for {entry.name}.")
    frames = range(len(found))[entry.start : entry.start + entry.count * entry.step : entry.step]
    return found.select(list(frames))
