"""What an evaluation says: measures of one sequence, rows of many, and means that never hide a failure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

Averaging = Literal["sequences", "valid_pixels"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number and what it is.

    Attributes:
        metric: a name in `metrics.METRICS`.
        alignment: what was fitted before (a name of `gauge`).
        value: the number; NaN exactly when it failed.
        n: how many pixels, points, pairs or frames it is about.
        failed: why there is no number, "" if there is one.
    """

    metric: str
    alignment: str
    value: float
    n: int
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a page shows of one sequence.

    Attributes:
        image: [H, W, 3] the frame, RGB in [0, 1].
        error: [H, W] relative error of its pixels, NaN where nothing is scored; None when the protocol has no pixels.
        path: [T, 3] aligned camera centres, or None.
        true_path: [T, 3] true camera centres, or None.
    """

    image: Float[Tensor, "H W 3"] | None = None
    error: Float[Tensor, "H W"] | None = None
    path: Float[Tensor, "T 3"] | None = None
    true_path: Float[Tensor, "T 3"] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The measures of one prediction of one sequence under one protocol.

    Attributes:
        protocol: its name, or the suite's.
        sequence: name of the clip.
        system: who predicted it; ends in " + true poses" where the true cameras replaced the estimated ones.
        measures: one per metric and alignment.
        picture: for pages.
    """

    protocol: str
    sequence: str
    system: str
    measures: tuple[Measure, ...]
    picture: Picture = Picture()

    def value(self, metric: str, alignment: str | None = None) -> float:
        """The number of a metric (the first one, or that of an alignment).

        Raises KeyError when the report has no such measure.
        """
        for measure in self.measures:
            if measure.metric == metric and alignment in (None, measure.alignment):
                return measure.value
        raise KeyError(f"The report of {self.protocol} has no {metric}; it has {[m.metric for m in self.measures]}.")

    def rows(self) -> list[dict[str, Any]]:
        """One flat, JSON-able row per measure; `value` is None and `failed` says why where there is no number."""
        return [
            {
                "suite": self.protocol,
                "sequence": self.sequence,
                "system": self.system,
                "metric": measure.metric,
                "alignment": measure.alignment,
                "value": None if measure.failed else measure.value,
                "n": measure.n,
                "failed": measure.failed or None,
            }
            for measure in self.measures
        ]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Average of one metric of one system over sequences.

    Attributes:
        value: mean over the sequences that did not fail; NaN when all did.
        low, high: 95 % bootstrap interval over sequences; NaN with fewer than two.
        scored: how many sequences the mean is over.
        total: how many there should be.
    """

    protocol: str
    system: str
    metric: str
    alignment: str
    value: float
    low: float
    high: float
    scored: int
    total: int


def measure(metric: str, alignment: str, value: float, n: int) -> Measure:
    """A measure; a value that is not finite makes it a failed one."""
    if math.isfinite(value):
        return Measure(metric=metric, alignment=alignment, value=value, n=n)
    return failure(metric, alignment, "the value is not finite", n)


def failure(metric: str, alignment: str, reason: str, n: int = 0) -> Measure:
    """A measure without a number, and why."""
    return Measure(metric=metric, alignment=alignment, value=math.nan, n=n, failed=reason)


def summarize(reports: Iterable[Report], averaging: Averaging = "sequences", resamples: int = 1000) -> list[Mean]:
    """Mean over sequences per protocol, system, metric and alignment, in order of first appearance.

    Failed measures count in `total` and not in the value. "valid_pixels" weights each sequence by its pixels. The
    interval resamples sequences, with a fixed seed, so that the same rows always give the same table.
    """
    groups: dict[tuple[str, str, str, str], list[Measure]] = {}
    for report in reports:
        for entry in report.measures:
            groups.setdefault((report.protocol, report.system, entry.metric, entry.alignment), []).append(entry)
    return [_mean(key, entries, averaging, resamples) for key, entries in groups.items()]


def _mean(key: tuple[str, str, str, str], entries: Sequence[Measure], averaging: Averaging, resamples: int) -> Mean:
    good = [entry for entry in entries if not entry.failed]
    values = np.array([entry.value for entry in good])
    weights = np.array([entry.n if averaging == "valid_pixels" else 1 for entry in good], dtype=float)
    value = low = high = math.nan
    if len(good):
        value = float((values * weights).sum() / weights.sum())
    if len(good) > 1:
        pick = np.random.default_rng(0).integers(0, len(good), (resamples, len(good)))
        means = (values[pick] * weights[pick]).sum(1) / weights[pick].sum(1)
        low, high = (float(bound) for bound in np.percentile(means, [2.5, 97.5]))
    protocol, system, metric, alignment = key
    return Mean(
        protocol=protocol,
        system=system,
        metric=metric,
        alignment=alignment,
        value=value,
        low=low,
        high=high,
        scored=len(good),
        total=len(entries),
    )
