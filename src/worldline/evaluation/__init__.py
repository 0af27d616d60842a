"""Metrics, protocols as data, and the fixed benchmark suites."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "PROTOCOLS": "protocols",
    "Protocol": "protocols",
    "Report": "report",
    "evaluate": "engine",
    "evaluate_both": "engine",
    "read": "readers",
    "run_suites": "benchmark",
    "summarize": "report",
}

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "Report",
    "evaluate",
    "evaluate_both",
    "read",
    "run_suites",
    "summarize",
]

if TYPE_CHECKING:
    from worldline.evaluation.benchmark import run_suites
    from worldline.evaluation.engine import evaluate, evaluate_both
    from worldline.evaluation.protocols import PROTOCOLS, Protocol
    from worldline.evaluation.readers import read
    from worldline.evaluation.report import Report, summarize


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'worldline.evaluation' has no attribute '{name}'")
    return getattr(importlib.import_module(f"worldline.evaluation.{_HOME[name]}"), name)
