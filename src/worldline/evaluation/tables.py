"""Reports as JSON rows and Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from worldline.evaluation.metrics import describe, rank
from worldline.evaluation.protocols.protocol import Protocol
from worldline.evaluation.report import Mean, Report


def rows(reports: Iterable[Report]) -> list[dict[str, Any]]:
    """One JSON-able row per number: {suite, sequence, system, metric, alignment, value, n, failed}."""
    return [row for report in reports for row in report.rows()]


def number(value: float) -> str:
    """Four significant digits; a dash for what is not a number."""
    return "–" if not math.isfinite(value) else f"{value:.4g}"


def cell(mean: Mean) -> str:
    """The mean, its interval, and n/N when a sequence failed."""
    text = number(mean.value)
    if math.isfinite(mean.low):
        text += f" [{number(mean.low)}, {number(mean.high)}]"
    return text if mean.scored == mean.total else f"{text} ({mean.scored}/{mean.total})"


def short_cell(mean: Mean) -> str:
    """The mean, and n/N when a sequence failed."""
    return number(mean.value) + ("" if mean.scored == mean.total else f" ({mean.scored}/{mean.total})")


def grid(means: Sequence[Mean], show: Callable[[Mean], str] = cell) -> tuple[list[str], list[list[str]]]:
    """Header and lines of one protocol's table: a line per metric and alignment, a column per system.

    The second column is N, the number of sequences whose truth allows the metric.
    """
    metrics = sorted(dict.fromkeys((mean.metric, mean.alignment) for mean in means), key=lambda entry: rank(entry[0]))
    systems = list(dict.fromkeys(mean.system for mean in means))
    found = {(mean.system, mean.metric, mean.alignment): mean for mean in means}
    lines = []
    for metric in metrics:
        entries = [found.get((system, *metric)) for system in systems]
        total = max(entry.total for entry in entries if entry is not None)
        lines.append([heading(*metric), str(total), *("" if entry is None else show(entry) for entry in entries)])
    return ["metric (alignment)", "N", *systems], lines


def heading(metric: str, alignment: str) -> str:
    """Metric, arrow of the better direction, unit and alignment."""
    meaning = describe(metric)
    arrow = "↓" if meaning.better == "lower" else "↑"
    unit = f" {meaning.unit}" if meaning.unit else ""
    return f"{metric} {arrow}{unit} ({alignment.removesuffix('/sequence')})"


def markdown(means: Sequence[Mean], protocols: Sequence[Protocol] = ()) -> str:
    """One table per protocol or suite, with what the protocol hides above it."""
    known = {protocol.name: protocol for protocol in protocols}
    parts = []
    for name in dict.fromkeys(mean.protocol for mean in means):
        header, lines = grid([mean for mean in means if mean.protocol == name])
        parts.append(f"### {name}\n")
        if name in known:
            parts.append(f"Source: {known[name].source}. {known[name].pitfall}\n")
        parts.append("| " + " | ".join(header) + " |")
        parts.append("|" + "---|" * len(header))
        parts += ["| " + " | ".join(line) + " |" for line in lines]
        parts.append("")
    return "\n".join(parts)
