"""What a prediction costs: seconds per frame, highest resident memory, number of weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worldline.evaluation.report import Measure, failure, measure
from worldline.scene import Scene4D


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one prediction.

    Attributes:
        seconds: wall time.
        peak_bytes: highest resident memory of this process meanwhile, None where the platform does not say.
    """

    seconds: float
    peak_bytes: int | None


def timed(predict: Callable[[], Scene4D]) -> tuple[Scene4D, Cost]:
    """The prediction and its cost; raises what it raises."""
    known = _forget_peak()
    start = time.perf_counter()
    scene = predict()
    seconds = time.perf_counter() - start
    return scene, Cost(seconds=seconds, peak_bytes=_peak() if known else None)


def cost_measures(cost: Cost, frames: int, parameters: int | None) -> list[Measure]:
    """Rows for the table; memory and weights only where they are known."""
    rows = [measure("seconds_per_frame", "none", cost.seconds / frames, frames)]
    if cost.peak_bytes is not None:
        rows.append(measure("peak_memory_mib", "none", cost.peak_bytes / 2**20, frames))
    if parameters is not None:
        rows.append(measure("parameters", "none", float(parameters), 1))
    return rows


def owed_costs(reason: str, parameters: int | None) -> list[Measure]:
    """The same rows of a system that failed."""
    rows = [failure("seconds_per_frame", "none", reason)]
    if _status("VmHWM") is not None:
        rows.append(failure("peak_memory_mib", "none", reason))
    return rows if parameters is None else [*rows, measure("parameters", "none", float(parameters), 1)]


def _forget_peak() -> bool:
    """Start the kernel's peak counter anew (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int | None:
    return _status("VmHWM")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
