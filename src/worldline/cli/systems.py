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
    wide = max(len(row["name"]) for row in rows) + 1
    result(f"{api.AUTO:<{wide}} the default: {api.PARALLAX}, with {api.AUTO_PRIOR} where flow says nothing;")
    result(f"{'':<{wide}} on a CUDA GPU with {api.PUBLISHED}, once its licence is accepted and its weights are here")
    for row in rows:
        state = f"needs {', '.join(row['needs'])}" if not row["installed"] else ""
        state = state or ("runs as installed" if row["embedded"] else "runs once the weights are here")
        result(f"{row['name']:<{wide}} {row['summary']}")
        result(f"{'':<{wide}} weights: {row['weights']}; licence: {row['licence']}; {state}")
        if row["caution"]:
            result(f"{'':<{wide}} mind: {row['caution']}")
    return 0
