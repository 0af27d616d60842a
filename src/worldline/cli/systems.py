"""`worldline systems`: every system by name."""

from __future__ import annotations

from dataclasses import dataclass

from worldline.cli.console import result, result_json


@dataclass(frozen=True, kw_only=True)
class Systems:
    """List the systems: what they do, their weights and licences, and whether they can run here."""

    json: bool = False
    """Answer as JSON."""


arguments = Systems


def run(args: Systems) -> int:
    """Print one row per system."""
    from worldline import api

    rows = api.systems()
    if args.json:
        result_json(rows)
        return 0
    for row in rows:
        state = "installed" if row["installed"] else f"needs {', '.join(row['needs'])}"
        result(f"{row['name']:<20} {row['summary']}")
        result(f"{'':<20} weights: {row['weights']}; licence: {row['licence']}; {state}")
    return 0
