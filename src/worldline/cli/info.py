"""`worldline info`: what a stored scene holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from worldline.cli.console import result, result_json


@dataclass(frozen=True, kw_only=True)
class Info:
    """Say what a stored scene holds."""

    scene: Annotated[Path, tyro.conf.Positional]
    """Folder written by `worldline reconstruct`."""
    json: bool = False
    """Answer as JSON."""


arguments = Info


def run(args: Info) -> int:
    """Print the facts of one scene."""
    from worldline.io.store import info

    facts = info(args.scene)
    if args.json:
        result_json(facts)
        return 0
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if not isinstance(value, dict):
            result(f"{name:<{width}}  {value}")
    return 0
