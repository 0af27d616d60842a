"""A report as one HTML file that needs nothing else: tables, intervals, error maps, trajectories, failures.

Pictures are embedded PNG, trajectories are inline SVG; there is no script and no reference to another file.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.evaluation.metrics import describe
from worldline.evaluation.protocols.protocol import Protocol
from worldline.evaluation.report import Mean, Picture, Report
from worldline.evaluation.tables import grid, number

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #1c2733; }
h1, h2, h3 { line-height: 1.2; } table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block;
overflow-x: auto; } th, td { border-bottom: 1px solid #d5dde5; padding: .3rem .6rem; text-align: left; white-space:
nowrap; } th { background: #f1f5f9; } .failed { color: #b42318; } .trivial { color: #64748b; } .note { max-width: 60rem;
} .shots { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } figcaption { font-size: 12px; } svg
{ background: #f8fafc; border: 1px solid #d5dde5; } details { margin: .5rem 0; }
"""

FULL_ERROR = 0.5
"""Relative error drawn as the brightest colour."""


def html_page(
    reports: Sequence[Report], means: Sequence[Mean], protocols: Sequence[Protocol], title: str = "Worldline evaluation"
) -> str:
    """The whole page: per protocol its definition, means with intervals, every sequence, pictures."""
    known = {protocol.name: protocol for protocol in protocols}
    body = [f"<h1>{escape(title)}</h1>", _intro()]
    for name in dict.fromkeys(report.protocol for report in reports):
        body.append(f"<h2>{escape(name)}</h2>")
        if name in known:
            body.append(_definition(known[name]))
        body.append(_table([mean for mean in means if mean.protocol == name]))
        chosen = [report for report in reports if report.protocol == name]
        body += [_sequence(chosen, sequence) for sequence in dict.fromkeys(r.sequence for r in chosen)]
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _intro() -> str:
    return (
        "<p class='note'>Numbers are means over the sequences that could be scored, n/N says how many those are; in "
        "brackets the 95 % bootstrap interval over sequences. Failed rows are shown, never dropped. What is in grey "
        "has not looked at the video. A row with true poses shows what is left when camera errors are taken out.</p>"
    )


def _definition(protocol: Protocol) -> str:
    facts = {"Source": protocol.source, "Beware": protocol.pitfall, "Failures as published": protocol.failures}
    lines = "".join(f"<dt><b>{key}</b></dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return f"<dl class='note'>{lines}</dl>"


def _kind(system: str) -> str:
    return " class='trivial'" if system.startswith("trivial") else ""


def _table(means: Sequence[Mean]) -> str:
    header, lines = grid(means)
    head = "".join(f"<th{_kind(name)}>{escape(name)}</th>" for name in header)
    rows = "".join(
        "<tr>" + "".join(f"<td{_kind(n)}>{escape(entry)}</td>" for n, entry in zip(header, line, strict=True)) + "</tr>"
        for line in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _sequence(reports: Sequence[Report], sequence: str) -> str:
    chosen = [report for report in reports if report.sequence == sequence]
    rows = []
    for report in chosen:
        for measure in report.measures:
            value = f"<td>{number(measure.value)}</td>"
            if measure.failed:
                value = f"<td class='failed'>failed: {escape(measure.failed)}</td>"
            unit = escape(describe(measure.metric).unit)
            cells = (
                f"<td>{escape(report.system)}</td><td>{escape(measure.metric)}</td><td>{escape(measure.alignment)}</td>"
            )
            rows.append(f"<tr{_kind(report.system)}>{cells}{value}<td>{unit}</td><td>{measure.n}</td></tr>")
    head = "<tr><th>system</th><th>metric</th><th>alignment</th><th>value</th><th>unit</th><th>n</th></tr>"
    shots = "".join(_shots(report) for report in chosen if not report.system.startswith("trivial"))
    table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    details = f"<details><summary>all numbers</summary>{table}</details>"
    return f"<h3>{escape(sequence or 'sequence')}</h3><div class='shots'>{shots}</div>{details}"


def _shots(report: Report) -> str:
    picture, figures = report.picture, []
    if picture.image is not None and min(picture.image.shape[:2]) > 1:
        figures.append(_figure(_png(picture.image), "frame"))
    if picture.error is not None and min(picture.error.shape) > 1:
        caption = f"{report.system}: relative error, 0 dark to {FULL_ERROR:.0%} bright; grey: not scored"
        figures.append(_figure(_png(error_colors(picture.error)), caption))
    if picture.path is not None and picture.true_path is not None:
        figures.append(
            f"<figure>{path_svg(picture)}<figcaption>{escape(report.system)}: camera path</figcaption></figure>"
        )
    return "".join(figures)


def _figure(data: str, caption: str) -> str:
    text = escape(caption)
    return f"<figure><img width='320' alt='{text}' src='{data}'><figcaption>{text}</figcaption></figure>"


def error_colors(error: Float[Tensor, "H W"]) -> Float[Tensor, "H W 3"]:
    """Relative errors as dark blue, orange, pale yellow; grey where not a number."""
    stops = torch.tensor([[0.05, 0.05, 0.25], [0.85, 0.35, 0.10], [1.0, 0.97, 0.75]])
    share = (error.float().nan_to_num(0.0) / FULL_ERROR).clamp(0, 1)[..., None]
    low = stops[0] + (stops[1] - stops[0]) * (2 * share).clamp(max=1)
    colors = torch.where(share > 0.5, stops[1] + (stops[2] - stops[1]) * (2 * share - 1).clamp(min=0), low)
    return torch.where(error.isnan()[..., None], torch.full_like(colors, 0.6), colors)


def _png(image: Float[Tensor, "H W 3"]) -> str:
    from PIL import Image

    pixels = (image.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def path_svg(picture: Picture, side: int = 240) -> str:
    """True path (dark) and aligned estimate (orange), seen along the direction the true path varies least in."""
    assert picture.path is not None and picture.true_path is not None
    both = torch.cat([picture.true_path, picture.path]).double()
    centred = both - picture.true_path.double().mean(0)
    axes = torch.linalg.svd(picture.true_path.double() - picture.true_path.double().mean(0), full_matrices=True).Vh[:2]
    flat = centred @ axes.mT
    span = float((flat.amax(0) - flat.amin(0)).max())
    scale = (side - 20) / span if span > 0 and math.isfinite(span) else 1.0
    places = ((flat - flat.amin(0)) * scale + 10).tolist()
    count = len(picture.true_path)
    lines = []
    for color, part in (("#1c2733", places[:count]), ("#e8590c", places[count:])):
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in part)
        lines.append(f"<polyline fill='none' stroke='{color}' stroke-width='2' points='{corners}'/>")
    return f"<svg width='{side}' height='{side}' viewBox='0 0 {side} {side}'>{''.join(lines)}</svg>"
