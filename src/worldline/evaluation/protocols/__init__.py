"""Protocols by name: those of the field, and the one of this project's suites."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from worldline.evaluation.protocols.protocol import Dataset, Protocol
from worldline.evaluation.protocols.published import PUBLISHED
from worldline.evaluation.protocols.suites import WORLDLINE_V1

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({p.name: p for p in (*PUBLISHED, WORLDLINE_V1)})
"""Every protocol by name."""

__all__ = ["PROTOCOLS", "Dataset", "Protocol"]
