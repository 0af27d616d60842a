"""Many predictions, many sequences, many protocols: the table behind `worldline evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from worldline.evaluation.baselines import TRIVIAL
from worldline.evaluation.engine import applicable, evaluate, evaluate_both, failed_reports
from worldline.evaluation.protocols.protocol import Protocol
from worldline.evaluation.report import Mean, Report, summarize
from worldline.scene import Progress, Scene4D, Video, no_progress

MISSING = "there is no prediction for this sequence"


@dataclass(frozen=True, kw_only=True)
class Sequence4D:
    """One sequence to score.

    Attributes:
        name: of the row.
        truth: loads the truth; what it raises ends the evaluation, for nothing can be said without truth.
        predictions: by system, loads its prediction given the true video; what one raises is a failed row.
    """

    name: str
    truth: Callable[[], Scene4D]
    predictions: Mapping[str, Callable[[Video], Scene4D]]


def score(
    sequences: Iterable[Sequence4D],
    protocols: Sequence[Protocol],
    *,
    systems: Sequence[str],
    dataset: str | None = None,
    trivial: bool = True,
    pictures: bool = False,
    progress: Progress = no_progress,
) -> list[Report]:
    """Score every system on every sequence under every protocol.

    A system without a prediction for a sequence has failed rows there, and true-pose rows stand beside the rows of
    systems that used estimated poses. Only one sequence is in memory at a time.

    Args:
        sequences: what there is.
        protocols: from `PROTOCOLS`; a protocol a truth has nothing for gives no rows on it.
        systems: names, in the order of the table.
        dataset: whose settings of the protocols to use (default: the one named in the truth).
        trivial: also score the trivial predictors.
        pictures: keep error maps and trajectories for a page.
        progress: told after every sequence.

    Raises:
        ValueError: a protocol has no settings for the data set.
    """
    for protocol in protocols:
        protocol.on(dataset)
    reports: list[Report] = []
    sequences = list(sequences)
    for done, sequence in enumerate(sequences, start=1):
        truth = _named(sequence.truth(), dataset)
        for system in systems:
            load = sequence.predictions.get(system, _missing)
            reports += _score_one(system, load, truth, sequence.name, protocols, pictures)
        if trivial:
            reports += _score_trivial(truth, sequence.name, protocols)
        progress("evaluate", done, len(sequences))
    return reports


def summarize_each(reports: Iterable[Report], protocols: Sequence[Protocol]) -> list[Mean]:
    """Means of every protocol, each averaged over sequences in that protocol's way."""
    reports = list(reports)
    averages: list[Mean] = []
    for protocol in protocols:
        averages += summarize((r for r in reports if r.protocol == protocol.name), protocol.averaging)
    return averages


def _score_one(
    system: str,
    load: Callable[[Video], Scene4D],
    truth: Scene4D,
    sequence: str,
    protocols: Sequence[Protocol],
    pictures: bool,
) -> list[Report]:
    chosen = [protocol for protocol in protocols if applicable(protocol, truth, "estimated")]
    try:
        prediction = load(truth.video)
    except Exception as error:  # noqa: BLE001 - any damaged file of another tool becomes a row that says so
        reason = " ".join(str(error).split()) or type(error).__name__
        return [
            report
            for protocol in chosen
            for report in failed_reports(truth, protocol, sequence=sequence, system=system, reason=reason)
        ]
    return [
        report
        for protocol in chosen
        for report in evaluate_both(prediction, truth, protocol, sequence=sequence, system=system, picture=pictures)
    ]


def _score_trivial(truth: Scene4D, sequence: str, protocols: Sequence[Protocol]) -> list[Report]:
    """Trivial predictors have no estimated poses to replace: one row each."""
    chosen = [protocol for protocol in protocols if applicable(protocol, truth, "estimated")]
    return [
        evaluate(predict(truth.video, 0), truth, protocol, sequence=sequence, system=name)
        for name, predict in TRIVIAL.items()
        for protocol in chosen
    ]


def _named(truth: Scene4D, dataset: str | None) -> Scene4D:
    """The truth, with the data set whose settings were asked for."""
    if dataset is None:
        return truth
    settings = {**truth.provenance.settings, "dataset": dataset}
    return replace(truth, provenance=replace(truth.provenance, settings=settings))


def _missing(video: Video) -> Scene4D:
    raise FileNotFoundError(MISSING)
