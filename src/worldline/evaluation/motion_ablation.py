"""Scores of rows of trained systems on held-out windows with truth, their spread over seeds, and what it proves.

A prediction gets one scale and one 3-vector shift per clip (specs/motioncrafter.md 5.2: least squares over all valid
pixels, no rotation) before it is compared in the world of the clip's first camera; scene flow is scaled with the
points, its error is in percent of the clip's mean distance from its centre.

A difference between two rows is taken clip by clip and seed by seed. Its standard error adds what clips and what seeds
contribute: se^2 = var over clips of the seeds' mean / clips + var over seeds of the clips' mean / seeds. It counts when
it is above 2 se and every single seed agrees on its sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.evaluation.points import depth_of_points_errors, point_errors
from worldline.geometry import fit, pointmap

METRICS: Mapping[str, str] = {
    "relp": "Relp %",
    "inlier": "inliers %",
    "abs_rel": "AbsRel %",
    "epe_all": "EPE all %",
    "epe_moving": "EPE moving %",
    "vae_relp": "VAE alone: Relp %",
    "vae_epe_moving": "VAE alone: EPE moving %",
}
"""Headings; only "inlier" is better when it is larger."""

SURE = 2.0
"""Standard errors that make a difference more than chance."""

Clip = Mapping[str, Tensor]
"""One clip's truth, or several stacked, by name."""

Predictor = Callable[[Tensor], tuple[Tensor, Tensor]]

Scores = Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]
"""row -> seed -> metric -> one number per clip (NaN where a clip has no such thing)."""


def window_scores(
    points: Float[Tensor, "T H W 3"],
    flow: Float[Tensor, "T H W 3"],
    *,
    truth: Float[Tensor, "T H W 3"],
    valid: Bool[Tensor, "T H W"],
    cam2world: Float[Tensor, "T 4 4"],
    scene_flow: Float[Tensor, "T H W 3"],
    flow_valid: Bool[Tensor, "T H W"],
    dynamic: Bool[Tensor, "T H W"],
) -> dict[str, float]:
    """relp, inlier, abs_rel, epe_all and epe_moving of one window, in percent; epe_moving is NaN if nothing moves."""
    scale, shift = fit.scale_shift3_l2(points[valid], truth[valid])
    aligned = scale * points + shift
    depth, depth_truth = (pointmap.depth_of(maps, cam2world) for maps in (aligned, truth))
    relative = point_errors(aligned, truth, valid)
    unit = (truth[valid] - truth[valid].mean(0)).norm(dim=-1).mean()
    error = 100 * (scale * flow - scene_flow).norm(dim=-1) / unit
    moving = flow_valid & dynamic
    return {
        "relp": 100 * relative["rel_p"],
        "inlier": 100 * relative["delta_p_0.25"],
        "abs_rel": 100 * depth_of_points_errors(depth, depth_truth, valid)["depth_abs_rel"],
        "epe_all": float(error[flow_valid].mean()) if bool(flow_valid.any()) else math.nan,
        "epe_moving": float(error[moving].mean()) if bool(moving.any()) else math.nan,
    }


@runtime_checkable
class Claim(Protocol):
    """Some rows are better than others (see `systems.motioncrafter.ablation_rows.Claim`)."""

    @property
    def text(self) -> str:
        """The finding."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(better row, worse row); differences are averaged over the pairs."""

    @property
    def metric(self) -> str:
        """What decides."""


def clip_scores(
    predict: Predictor, reconstruct: Callable[[Clip], tuple[Tensor, Tensor]] | None, clips: Clip
) -> dict[str, list[float]]:
    """Metric -> one number per clip; those of the VAE alone only with `reconstruct`.

    Args:
        predict: frames [T, H, W, 3] in [0, 1] -> points and scene flow of some world and unit.
        reconstruct: truth of a clip -> what a VAE makes of it.
        clips: rgb, points, valid, cam2world, scene_flow, flow_valid, dynamic; each [clips, T, ...].
    """
    found: dict[str, list[float]] = {}
    for place in range(len(clips["rgb"])):
        clip = {name: value[place] for name, value in clips.items()}
        row = _against(predict(clip["rgb"]), clip)
        if reconstruct is not None:
            alone = _against(reconstruct(clip), clip)
            row |= {f"vae_{name}": alone[name] for name in ("relp", "epe_moving")}
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def _against(maps: tuple[Tensor, Tensor], clip: Clip) -> dict[str, float]:
    names = ("valid", "cam2world", "scene_flow", "flow_valid", "dynamic")
    return window_scores(*maps, truth=clip["points"], **{name: clip[name] for name in names})


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the numbers say about a claim.

    Attributes:
        claim: what was claimed.
        gain: mean improvement of the better rows, in the unit of the metric; negative when they are worse.
        error: its standard error (module docstring).
        seeds: improvement of each seed.
        answer: "holds", "the opposite holds", "not decided", or "no numbers".
    """

    claim: Claim
    gain: float
    error: float
    seeds: tuple[float, ...]
    answer: Literal["holds", "the opposite holds", "not decided", "no numbers"]


def judge(scores: Scores, claim: Claim) -> Verdict:
    """Whether a claim holds, by paired differences of the seeds that have all its rows."""
    rows = {row for pair in claim.pairs for row in pair}
    seeds = sorted(set.intersection(*(set(scores.get(row, {})) for row in rows)))
    if not seeds:
        return Verdict(claim=claim, gain=math.nan, error=math.nan, seeds=(), answer="no numbers")
    sign = -1 if claim.metric == "inlier" else 1
    gains = sign * np.array(  # [seeds, clips]
        [
            np.mean([_values(scores, worse, seed, claim.metric) - _values(scores, better, seed, claim.metric)
                     for better, worse in claim.pairs], axis=0)
            for seed in seeds
        ]
    )  # fmt: skip
    gains = gains[:, np.isfinite(gains).all(0)]
    if not gains.size:
        return Verdict(claim=claim, gain=math.nan, error=math.nan, seeds=(), answer="no numbers")
    by_seed, by_clip = gains.mean(1), gains.mean(0)
    gain = float(gains.mean())
    variances = [values.var(ddof=1) / len(values) if len(values) > 1 else math.nan for values in (by_clip, by_seed)]
    error = float(sum(variances) ** 0.5)
    answer: Literal["holds", "the opposite holds", "not decided"] = "not decided"
    if abs(gain) > SURE * error and bool((np.sign(by_seed) == np.sign(gain)).all()):
        answer = "holds" if gain > 0 else "the opposite holds"
    return Verdict(claim=claim, gain=gain, error=error, seeds=tuple(by_seed.tolist()), answer=answer)


def _values(scores: Scores, row: str, seed: int, metric: str) -> np.ndarray:
    return np.array(scores[row][seed][metric], dtype=float)


def means(scores: Scores, row: str) -> dict[str, tuple[float, float]]:
    """Metric -> mean over clips and seeds, and the standard deviation between the seeds' means (NaN with one)."""
    found = {}
    for metric in METRICS:
        by_seed = [
            float(np.nanmean(np.array(numbers[metric], dtype=float)))
            for numbers in scores[row].values()
            if metric in numbers
        ]
        if by_seed:
            spread = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else math.nan
            found[metric] = (float(np.mean(by_seed)), spread)
    return found


def markdown(scores: Scores, tables: Mapping[str, Sequence[str]], verdicts: Sequence[Verdict], trivial: str) -> str:
    """The tables, each with the trivial predictor last, then what holds; rows without numbers are said to be missing.

    Cells are mean ± standard deviation between seeds.
    """
    lines: list[str] = []
    for title, rows in tables.items():
        lines += [
            f"**{title}**",
            "",
            f"| row | seeds | {' | '.join(METRICS.values())} |",
            "|---" * (2 + len(METRICS)) + "|",
        ]
        for row in [*rows, trivial]:
            if row not in scores or not scores[row]:
                lines.append(f"| {row} | 0 | {' | '.join('missing' for _ in METRICS)} |")
                continue
            numbers = means(scores, row)
            cells = [_cell(*numbers[metric]) if metric in numbers else "" for metric in METRICS]
            count = "" if row == trivial else str(len(scores[row]))
            lines.append(f"| {row} | {count} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["| finding | metric | gain ± se | seeds | at this scale |", "|---|---|---|---|---|"]
    for verdict in verdicts:
        each = ", ".join(f"{gain:+.2f}" for gain in verdict.seeds)
        metric = METRICS[verdict.claim.metric]
        lines.append(
            f"| {verdict.claim.text} | {metric} | {verdict.gain:+.2f} ± {verdict.error:.2f} | {each} | "
            f"**{verdict.answer}** |"
        )
    return "\n".join(lines) + "\n"


def _cell(mean: float, spread: float) -> str:
    return f"{mean:.2f}" if math.isnan(spread) else f"{mean:.2f} ± {spread:.2f}"


def as_json(scores: Scores, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Rows and findings as plain values."""
    rows = {
        row: {
            "seeds": sorted(by_seed),
            **{metric: {"mean": mean, "seed_std": spread} for metric, (mean, spread) in means(scores, row).items()},
        }
        for row, by_seed in scores.items()
    }
    findings = [
        {
            "finding": verdict.claim.text,
            "metric": verdict.claim.metric,
            "gain": verdict.gain,
            "error": verdict.error,
            "seeds": list(verdict.seeds),
            "answer": verdict.answer,
        }
        for verdict in verdicts
    ]
    return {"rows": rows, "findings": findings}
