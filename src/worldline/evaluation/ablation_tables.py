"""Scores of an ablation as tables: means, paired differences, spread of seeds, failures, and which findings hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy import stats

from worldline.evaluation.ablation import METRICS, TRIVIAL, Score


@runtime_checkable
class Finding(Protocol):
    """A statement that one row is better than another (see `systems.geo4d.ablation.Claim`)."""

    @property
    def text(self) -> str:
        """The statement."""
        ...

    @property
    def table(self) -> str:
        """Where to look."""
        ...

    @property
    def metric(self) -> str:
        """One of `ablation.METRICS`."""
        ...

    @property
    def better(self) -> str:
        """The row that should be better."""
        ...

    @property
    def worse(self) -> str:
        """The row that should be worse."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one row.

    Attributes:
        mean, error: over clips of the mean over seeds, and its standard error.
        versus, versus_error: mean and standard error of the difference to the table's reference row, clip by clip.
        seeds: standard deviation between seeds, averaged over clips; NaN with one seed.
        failed, total: how many of how many answers are missing from the mean.
    """

    mean: float
    error: float
    versus: float
    versus_error: float
    seeds: float
    failed: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table.

    Attributes:
        table, row: its place.
        cells: metric -> numbers, for the metrics it has.
        seconds_per_frame: CPU time, NaN where nothing was computed.
    """

    table: str
    row: str
    cells: dict[str, Cell]
    seconds_per_frame: float


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error; NaN where there are too few values."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return math.nan, math.nan
    return float(known.mean()), float(known.std(ddof=1) / len(known) ** 0.5) if len(known) > 1 else math.nan


def per_clip(scores: Sequence[Score], table: str, row: str, metric: str) -> dict[int, list[float]]:
    """Numbers of each seed by clip; failed ones are not there."""
    found: dict[int, list[float]] = {}
    for score in scores:
        value = score.values.get(metric)
        if (score.table, score.row) == (table, row) and value is not None:
            found.setdefault(score.clip, []).append(value)
    return found


def difference(scores: Sequence[Score], table: str, metric: str, row: str, other: str) -> tuple[float, float, int]:
    """Mean and standard error of row - other over the clips that have both, and how many these are."""
    mine, theirs = per_clip(scores, table, row, metric), per_clip(scores, table, other, metric)
    both = [float(np.mean(mine[clip]) - np.mean(theirs[clip])) for clip in mine if clip in theirs]
    return (*mean_and_error(both), len(both))


def lines(scores: Sequence[Score], reference: Callable[[str], str]) -> list[Line]:
    """Every row of every table, in order of appearance; `reference(table)` is what its rows are compared with."""
    found = []
    for table, row in dict.fromkeys((score.table, score.row) for score in scores):
        mine = [score for score in scores if (score.table, score.row) == (table, row)]
        cells = {
            metric: _cell(scores, mine, metric, reference(table))
            for metric in METRICS
            if any(metric in score.values for score in mine)
        }
        seconds, _ = mean_and_error(s.seconds_per_frame for s in mine if s.seconds_per_frame is not None)
        found.append(Line(table=table, row=row, cells=cells, seconds_per_frame=seconds))
    return found


def _cell(scores: Sequence[Score], mine: Sequence[Score], metric: str, reference: str) -> Cell:
    table, row = mine[0].table, mine[0].row
    clips = per_clip(scores, table, row, metric)
    mean, error = mean_and_error(float(np.mean(values)) for values in clips.values())
    versus = (math.nan, math.nan) if row == reference else difference(scores, table, metric, row, reference)[:2]
    seeds = [float(np.std(values, ddof=1)) for values in clips.values() if len(values) > 1]
    owed = [score for score in mine if metric in score.values]
    return Cell(
        mean=mean,
        error=error,
        versus=versus[0],
        versus_error=versus[1],
        seeds=float(np.mean(seeds)) if seeds else math.nan,
        failed=sum(score.values[metric] is None for score in owed),
        total=len(owed),
    )


def verdicts(scores: Sequence[Score], findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Whether each finding holds here: the 95 % t interval of the paired difference is on one side of zero, or not."""
    answers = []
    for finding in findings:
        gain, error, clips = difference(scores, finding.table, finding.metric, finding.worse, finding.better)
        heading, _, direction = METRICS[finding.metric]
        gain = -gain if direction == "higher" else gain
        interval = float(stats.t.ppf(0.975, clips - 1)) * error if clips > 1 else math.nan
        verdict = "not decided"
        if math.isfinite(interval) and abs(gain) > interval:
            verdict = "holds" if gain > 0 else "does not hold: the opposite is measured"
        answers.append(
            {
                "finding": finding.text,
                "verdict": verdict,
                "metric": heading,
                "better": finding.better,
                "worse": finding.worse,
                "gain": gain,
                "interval": interval,
                "clips": clips,
            }
        )
    return answers


def rows(found: Sequence[Line]) -> list[dict[str, Any]]:
    """One flat, JSON-able row per number; NaN is None."""
    return [
        {
            "table": line.table,
            "row": line.row,
            "metric": metric,
            **{name: _plain(getattr(cell, name)) for name in Cell.__dataclass_fields__},
            "seconds_per_frame": _plain(line.seconds_per_frame),
        }
        for line in found
        for metric, cell in line.cells.items()
    ]


def _plain(value: float | int) -> float | int | None:
    return None if not math.isfinite(value) else round(value, 4)


def markdown(found: Sequence[Line], answers: Sequence[dict[str, Any]], reference: Callable[[str], str]) -> str:
    """A table for each table, then what holds."""
    parts = [table_text(found, reference), "#### What holds here", ""]
    parts += ["| finding of the paper | here | gain, 95 % interval | clips |", "|---|---|---|---|"]
    for entry in answers:
        gain = f"{_number(entry['gain'])} ± {_number(entry['interval'])} {entry['metric']}"
        parts.append(f"| {entry['finding']} | **{entry['verdict']}** | {gain} | {entry['clips']} |")
    return "\n".join([*parts, ""])


def table_text(found: Sequence[Line], reference: Callable[[str], str]) -> str:
    """Markdown tables: mean ± standard error over clips, and the difference to the reference row, clip by clip."""
    parts = []
    for table in dict.fromkeys(line.table for line in found):
        mine = [line for line in found if line.table == table]
        metrics = [metric for metric in METRICS if any(metric in line.cells for line in mine)]
        parts += [f"#### {table}", "", f'Differences are to "{reference(table)}", clip by clip.', ""]
        header = ["row", *(f"{METRICS[m][0]} | difference" for m in metrics), "seeds: AbsRel / ATE", "CPU s/frame"]
        parts += [f"| {' | '.join(header)} |", "|" + "---|" * (len(metrics) * 2 + 3)]
        for line in mine:
            cells = [_cell_text(line.cells.get(metric)) for metric in metrics]
            spread = " / ".join(_number(line.cells[m].seeds) if m in line.cells else "–" for m in ("abs_rel", "ate"))
            name = f"*{line.row}*" if line.row == TRIVIAL else line.row
            seconds = _number(line.seconds_per_frame) if line.row != TRIVIAL else ""
            parts.append(f"| {name} | {' | '.join(cells)} | {spread if spread.strip(' /–') else ''} | {seconds} |")
        parts.append("")
    return "\n".join(parts)


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return " | "
    lost = f" ({cell.total - cell.failed}/{cell.total})" if cell.failed else ""
    versus = "" if not math.isfinite(cell.versus) else f"{cell.versus:+.2f} ± {_number(cell.versus_error)}"
    return f"{_number(cell.mean)} ± {_number(cell.error)}{lost} | {versus}"


def _number(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3f}"
