"""What a run found: OUT/report.json for programs, report.md and report.html (with contact sheets) for people."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldline.data.curate.config import CurateConfig
from worldline.data.curate.gates import GATES
from worldline.data.curate.record import SUFFIX
from worldline.data.curate.release import PUBLISHED
from worldline.io.atomic import atomic_file
from worldline.io.jsonable import jsonable

OUTCOMES = {
    "kept": "kept",
    "rejected": "rejected by the judge or a gate",
    "unjudged": "the language model did not answer; another run asks again",
    "untracked": "could not be tracked; another run tries again",
    "short": "too few frames",
    "damaged": "cannot be read",
    "duplicate": "the same file as another",
}


def summary(clips: Sequence[Mapping[str, Any]], config: CurateConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Counts per outcome and per gate, what the records weigh and lose, and every clip, JSON-able.

    A gate's `failed` counts every tracked clip that fails it, `stopped` those it was the first to stop.
    """
    outcomes = Counter(clip["outcome"] for clip in clips)
    tracked = [clip for clip in clips if "gates" in clip]
    judged = [clip for clip in clips if "judgement" in clip]
    stopped = Counter(clip.get("gate") for clip in clips)
    gates = [_judge_row(judged, stopped["countable"])]
    for name, gate in GATES.items():
        verdicts = [v for clip in tracked for v in clip["gates"] if v["gate"] == name]
        gates.append(
            {
                "gate": name,
                "published": gate.published,
                "limit": float(getattr(config.gates, gate.limit)),
                "measured": len(verdicts),
                "failed": sum(not v["passed"] for v in verdicts),
                "stopped": stopped[name],
            }
        )
    return jsonable(
        {
            "videos": len(clips),
            "outcomes": {name: outcomes[name] for name in OUTCOMES},
            "gates": gates,
            "malformed_answers": sum(clip["judgement"]["malformed"] for clip in judged),
            "judged_by": dict(Counter(clip["judgement"]["source"] for clip in judged)),
            "bytes": _sizes(clips),
            "record_error": _worst(clips),
            "settings": dict(settings),
            "config": config,
            "clips": list(clips),
        }
    )


def _judge_row(judged: Sequence[Mapping[str, Any]], stopped: int) -> dict[str, Any]:
    failed = sum(not clip["judgement"]["countable"] for clip in judged)
    row = {"gate": "countable", "published": True, "limit": None, "measured": len(judged)}
    return {**row, "failed": failed, "stopped": stopped}


def _sizes(clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean bytes of a kept sample in the published files and in the compact record, videos not counted."""
    kept = [clip["files"] for clip in clips if clip["outcome"] == "kept"]
    ends = {"published": PUBLISHED, "record": (SUFFIX,)}
    found = {}
    for name, endings in ends.items():
        sizes = [sum(size or 0 for file, size in f.items() if file[6:] in endings) for f in kept]
        found[name] = round(sum(sizes) / len(sizes)) if sizes else None
    return found


def _worst(clips: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    errors = [clip["record_error"] for clip in clips if "record_error" in clip]
    return {name: max(error[name] for error in errors) for name in errors[0]} if errors else {}


def write_report(out: Path, found: Mapping[str, Any]) -> None:
    """Write the three files.

    Raises:
        OSError: the disk is full or read-only.
    """
    contents = {
        "report.json": json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False),
        "report.md": _markdown(found),
        "report.html": _html(out, found),
    }
    for name, text in contents.items():
        with atomic_file(out / name) as draft:
            draft.write_text(text, encoding="utf-8")


def _number(value: Any) -> str:
    return "not measured" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _said(clip: Mapping[str, Any]) -> str:
    """Outcome of a clip in one sentence."""
    said = clip["outcome"] + (f" ({clip['gate']})" if "gate" in clip else "")
    failed = [
        f"{v['gate']} {_number(v['value'])} > {_number(v['limit'])}" for v in clip.get("gates", []) if not v["passed"]
    ]
    return f"{said}{': ' if clip['why'] else ''}{clip['why']}{f' [{chr(59).join(failed)}]' if failed else ''}"


def _markdown(found: Mapping[str, Any]) -> str:
    lines = ["# Curation report", "", f"{found['videos']} videos, {found['outcomes']['kept']} kept.", ""]
    lines += ["| outcome | clips | meaning |", "| --- | ---: | --- |"]
    lines += [f"| {name} | {found['outcomes'][name]} | {meaning} |" for name, meaning in OUTCOMES.items()]
    lines += [
        "",
        "| gate | of the paper | limit | measured | failed | stopped |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found["gates"]:
        cells = (row["gate"], "yes" if row["published"] else "ours", "" if row["limit"] is None else row["limit"])
        lines.append("| " + " | ".join(str(c) for c in (*cells, row["measured"], row["failed"], row["stopped"])) + " |")
    size, error = found["bytes"], found["record_error"]
    lines += ["", "A kept sample weighs, on average and without its videos: " + ", ".join(
        f"{name} {value / 1e6:.2f} MB" for name, value in size.items() if value
    ) + "." if any(size.values()) else "Nothing was kept."]  # fmt: skip
    if error:
        lines.append(
            f"The record loses at most {error['largest_px']:.3g} px across and {error['largest_depth']:.2g} of the "
            f"depth along the view; half of all values less than {error['median_px']:.2g} px."
        )
    lines += ["", "| id | video | outcome |", "| --- | --- | --- |"]
    for clip in found["clips"]:
        said = _said(clip).replace("|", "\\|")
        lines.append(f"| {clip.get('id', '')} | {clip['source']} | {said} |")
    return "\n".join(lines) + "\n"


def _html(out: Path, found: Mapping[str, Any]) -> str:
    """The same with pictures; captions come from models, so everything is escaped."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{found['outcomes'][name]}<td>{html.escape(meaning)}"
        for name, meaning in OUTCOMES.items()
    )
    gates = "".join(
        f"<tr><td>{row['gate']}<td>{'paper' if row['published'] else 'ours'}<td>{_number(row['limit'] or '')}"
        f"<td>{row['measured']}<td>{row['failed']}<td>{row['stopped']}"
        for row in found["gates"]
    )
    clips = []
    for clip in found["clips"]:
        name, judged = clip.get("id", ""), clip.get("judgement")
        told = f"<p>{html.escape(judged['caption'])} <i>({html.escape(judged['source'])})</i></p>" if judged else ""
        sheet = f'<img src="sheets/{name}.png" alt="">' if name and (out / "sheets" / f"{name}.png").is_file() else ""
        head = f"<h3>{name} {html.escape(clip['source'])}</h3><p>{html.escape(_said(clip))}</p>"
        clips.append(f"<section>{head}{told}{sheet}</section>")
    style = "body{font:15px sans-serif;margin:2em;max-width:75em}td{padding:.1em .8em .1em 0}img{max-width:100%}"
    return (
        f"<!doctype html><meta charset=utf-8><title>Curation report</title><style>{style}</style>"
        f"<h1>{found['videos']} videos, {found['outcomes']['kept']} kept</h1><table>{rows}</table>"
        f"<h2>Gates</h2><table><tr><td>gate<td>whose<td>limit<td>measured<td>failed<td>stopped{gates}</table>"
        f"<h2>Clips</h2>{''.join(clips)}\n"
    )
