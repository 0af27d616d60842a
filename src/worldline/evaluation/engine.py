"""The one engine that runs every protocol: prediction and truth in, a report out."""

from __future__ import annotations

from typing import Literal

from worldline.evaluation.pair import Pair, pair_up
from worldline.evaluation.parts import Part
from worldline.evaluation.parts_camera import aligned_paths
from worldline.evaluation.protocols.protocol import Protocol
from worldline.evaluation.report import Picture, Report
from worldline.scene import Scene4D

Poses = Literal["estimated", "truth"]
TRUE_POSES = " + true poses"


def evaluate(
    prediction: Scene4D,
    truth: Scene4D,
    protocol: Protocol,
    *,
    sequence: str = "",
    system: str | None = None,
    dataset: str | None = None,
    poses: Poses = "estimated",
    picture: bool = False,
) -> Report:
    """Score one prediction of one sequence under one protocol.

    1. Settings of the data set (given, or named in the truth's provenance). 2. Same frames, same world. 3. Each part
    that the truth allows. With poses "truth" only the parts that depend on where cameras put things are measured, after
    the true cameras have replaced the estimated ones. A number that cannot be had is a failed measure with its reason;
    a protocol the truth has nothing for gives a report without measures.

    Args:
        prediction: what a system said.
        truth: what is so.
        protocol: from `PROTOCOLS`.
        sequence: name for the report.
        system: name for the report; default the prediction's provenance.
        dataset: whose settings of the protocol to use.
        poses: whose cameras place the predicted points in the world.
        picture: also make the error map and the trajectories for a page.

    Raises:
        ValueError: the protocol does not know the data set.
    """
    protocol = protocol.on(dataset or _dataset_of(truth, protocol))
    name = (prediction.provenance.system if system is None else system) + (TRUE_POSES if poses == "truth" else "")
    parts = applicable(protocol, truth, poses)
    shown = Picture()
    try:
        pair = pair_up(prediction, truth, protocol.frames, protocol.resize, poses)
    except ValueError as error:
        measures = [entry for part in parts for entry in part.failures(str(error))]
    else:
        measures = [entry for part in parts for entry in part.measures(pair)]
        shown = make_picture(pair, parts) if picture else shown
    return Report(protocol=protocol.name, sequence=sequence, system=name, measures=tuple(measures), picture=shown)


def evaluate_both(prediction: Scene4D, truth: Scene4D, protocol: Protocol, **names: str | bool | None) -> list[Report]:
    """The report, and beside it the one with true poses where estimated ones mattered."""
    reports = [evaluate(prediction, truth, protocol, **names)]  # type: ignore[arg-type]
    if prediction.cameras is not None and applicable(protocol, truth, "truth"):
        reports.append(evaluate(prediction, truth, protocol, poses="truth", **names))  # type: ignore[arg-type]
    return reports


def failed_reports(truth: Scene4D, protocol: Protocol, *, sequence: str, system: str, reason: str) -> list[Report]:
    """What stands in the table for a system that gave nothing: every number it owed, failed, with the reason."""
    protocol = protocol.on(_dataset_of(truth, protocol))
    measures = [entry for part in applicable(protocol, truth, "estimated") for entry in part.failures(reason)]
    return [Report(protocol=protocol.name, sequence=sequence, system=system, measures=tuple(measures))]


def applicable(protocol: Protocol, truth: Scene4D, poses: Poses) -> list[Part]:
    """Parts of the protocol that the truth has what they need for."""
    return [part for part in protocol.parts if (poses == "estimated" or part.placed) and part.applies(truth)]


def _dataset_of(truth: Scene4D, protocol: Protocol) -> str | None:
    """The data set named in the truth's provenance, if the protocol has settings for it."""
    named = truth.provenance.settings.get("dataset")
    return named if named in protocol.datasets else None


def make_picture(pair: Pair, parts: list[Part]) -> Picture:
    """Middle frame, its relative errors under the first part that has pixels, and trajectories."""
    middle = len(pair.truth) // 2
    maps = (part.error_map(pair, middle) for part in parts)
    paths = aligned_paths(pair)
    return Picture(
        image=pair.truth.video.rgb()[middle],
        error=next((errors for errors in maps if errors is not None), None),
        path=None if paths is None else paths[0],
        true_path=None if paths is None else paths[1],
    )
