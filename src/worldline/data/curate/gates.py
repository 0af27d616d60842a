"""The quality gates of a tracked clip (spec section 5, d): three of the paper, and ours.

the paper's   depth (invalid, out of range), spread, rescale
ours          cut, unknown, still, motion, reprojection

`measure` gives numbers, `decide` compares them with thresholds, so other thresholds need no other measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data.curate.config import GateConfig
from worldline.data.curate.tracked import Splatter, Tracked
from worldline.geometry import camera, pointmap
from worldline.geometry.normalize import DepthGuidedMotion
from worldline.scene import Tracks4D, Video

LOOKS = 5
"""Times at which the rescaled cloud is rendered."""

VISIBLE_CHANGE = 0.1
"""Difference of a colour channel, of 1, that counts as seen."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One gate: what it measures, where its limit is in the config, and whose it is."""

    measure: str
    limit: str
    why: str
    published: bool = False


GATES: Mapping[str, Gate] = {
    "cut": Gate(measure="cut", limit="cut", why="the clip is cut into several shots"),
    "unknown": Gate(measure="unknown", limit="unknown", why="too much of the first frame has no surface"),
    "depth": Gate(measure="invalid", limit="invalid", why="many points have no valid depth", published=True),
    "range": Gate(measure="out_of_range", limit="out_of_range", why="many points are too near or far", published=True),
    "spread": Gate(measure="spread", limit="spread", why="depth varies too much", published=True),
    "rescale": Gate(measure="changed", limit="changed", why="scaled, the cloud looks different", published=True),
    "still": Gate(measure="still", limit="still", why="nothing moves but the camera"),
    "motion": Gate(measure="motion", limit="motion", why="some points move impossibly far"),
    "reprojection": Gate(measure="reprojection_px", limit="reprojection_px", why="tracks are not where they are seen"),
}
"""In the order in which a clip meets them; "range" belongs to the paper's first test, as "depth" does."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one gate says.

    Attributes:
        gate: its name.
        value: what was measured; None if it could not be.
        limit: largest value that passes.
        passed: False too if nothing could be measured.
        why: what it means if it fails.
        published: whether the paper has this gate.
    """

    gate: str
    value: float | None
    limit: float
    passed: bool
    why: str
    published: bool


def decide(measures: Mapping[str, float | None], config: GateConfig) -> tuple[Verdict, ...]:
    """Every gate's verdict, in order."""
    found = []
    for name, gate in GATES.items():
        value, limit = measures.get(gate.measure), float(getattr(config, gate.limit))
        passed = value is not None and value <= limit  # False for NaN
        found.append(
            Verdict(gate=name, value=value, limit=limit, passed=passed, why=gate.why, published=gate.published)
        )
    return tuple(found)


def measure(video: Video, tracked: Tracked, splat: Splatter, config: GateConfig) -> dict[str, float]:
    """All numbers that the gates compare, by name; NaN where there is nothing to measure."""
    tracks = tracked.tracks
    unit = 1.0 if tracks.scale == "metric" else _median_depth(tracked)
    limits = config.range_m if tracks.scale == "metric" else tuple(unit * v for v in config.range_relative)
    near = config.near_m if tracks.scale == "metric" else unit * config.near_relative
    invalid, outside, spread = depth_statistics(tracked, (limits[0], limits[1]))
    return {
        "cut": cut(video),
        "unknown": 1 - float(tracked.valid.float().mean()),
        "invalid": invalid,
        "out_of_range": outside,
        "spread": spread,
        "changed": max(_changed(tracked, splat, factor, near) for factor in config.rescale),
        "still": 1 - float((tracked.moving & tracked.valid).sum()) / max(1, int(tracked.valid.sum())),
        "motion": largest_motion(tracked),
        "reprojection_px": reprojection(tracked),
    }


def cut(video: Video) -> float:
    """Largest distance of neighbouring frames' colour histograms (half the L1 distance, 0 to 1)."""
    step = max(1, min(video.size) // 64)
    frames = (video.frames[:, ::step, ::step].float() * (1 if video.frames.dtype == torch.uint8 else 255)).long()
    code = ((frames // 32) * torch.tensor([64, 8, 1])).sum(-1).flatten(1)
    histogram = torch.stack([torch.bincount(c, minlength=512).double() / c.numel() for c in code])
    return float((histogram[1:] - histogram[:-1]).abs().sum(1).max() / 2)


def depth_statistics(tracked: Tracked, limits: tuple[float, float]) -> tuple[float, float, float]:
    """Shares of invalid and out-of-range depths, and the spread of depth, at their worst times.

    Depth is that in the first camera, and for visible points also that in the camera which sees them. A hidden point
    that the moving camera has passed is no error.
    """
    if not bool(tracked.valid.any()):
        nothing = float("nan")
        return nothing, nothing, nothing
    points, visible = tracked.tracks.points, tracked.tracks.visible[:, tracked.valid]
    z, own = points[:, tracked.valid][..., 2], camera_depth(tracked.tracks)[:, tracked.valid]
    bad = ~(z.isfinite() & (z > 0)) | (visible & ~(own.isfinite() & (own > 0)))
    outside = (z < limits[0]) | (z > limits[1]) | (visible & ((own < limits[0]) | (own > limits[1])))
    kept = torch.where(bad, torch.nan, z)
    middle = kept.nanmedian(1).values
    spread = torch.stack([k[k.isfinite()].std(correction=0) if bool(k.isfinite().any()) else k[0] for k in kept])
    worst = (spread / middle.abs()).nan_to_num(nan=torch.inf).max()
    return float(bad.float().mean(1).max()), float((outside & ~bad).float().mean(1).max()), float(worst)


def camera_depth(tracks: Tracks4D) -> Float[Tensor, "T H W"]:
    """Depth of the points in the camera of each time."""
    return tracks.points[..., 2] if tracks.cameras is None else pointmap.depth_of(
        tracks.points, tracks.cameras.cam2world.to(tracks.points)
    )  # fmt: skip


def _changed(tracked: Tracked, splat: Splatter, factor: float, near: float) -> float:
    """Largest share of pixels that look different when the cloud is scaled about the camera (the published test)."""
    tracks, cameras = tracked.tracks, tracked.tracks.cameras
    if cameras is None:
        return float("nan")
    eye, worst = torch.eye(4, dtype=torch.float64), 0.0
    colors = tracks.colors[tracked.valid]
    for t in torch.linspace(0, len(tracks) - 1, min(LOOKS, len(tracks))).round().long().tolist():
        local = pointmap.to_camera(tracks.points[t], cameras.cam2world[t].to(tracks.points))[tracked.valid]
        before, after = (
            splat(scale * local, colors, eye, cameras.intrinsics[t], cameras.size, near=near) for scale in (1.0, factor)
        )
        differs = ((before.image - after.image).abs() > VISIBLE_CHANGE).any(-1) | (before.coverage != after.coverage)
        worst = max(worst, float(differs.float().mean()))
    return worst


def largest_motion(tracked: Tracked) -> float:
    """99.9th percentile over points of the largest normalised displacement (spec 1.3c)."""
    tracks, cameras = tracked.tracks, tracked.tracks.cameras
    if cameras is None or not bool(tracked.valid.any()):
        return float("nan")
    moved = normalization(tracks).apply(tracks.points)[:, tracked.valid].abs().amax(0).amax(-1)
    return float(moved.nan_to_num(nan=torch.inf, posinf=torch.inf).quantile(0.999))


def normalization(tracks: Tracks4D) -> DepthGuidedMotion:
    """Depth-guided normalisation with the first camera's own focal lengths; one object for both directions.

    Raises:
        ValueError: the tracks have no cameras.
    """
    if tracks.cameras is None:
        raise ValueError("Displacements are normalised by the first camera, and these tracks have none.")
    k, (height, width) = tracks.cameras.intrinsics[0], tracks.cameras.size
    focal = torch.stack([k[0, 0] / width, k[1, 1] / height]).to(tracks.points)
    return DepthGuidedMotion(reference=tracks.points[0], focal=focal)


def reprojection(tracked: Tracked) -> float:
    """Median distance in pixels of visible points from where they were seen, after the first frame."""
    tracks, cameras = tracked.tracks, tracked.tracks.cameras
    if cameras is None:
        return float("nan")
    gaps = []
    for t in range(1, len(tracks)):
        seen = tracks.visible[t] & tracked.valid
        local = pointmap.to_camera(tracks.points[t], cameras.cam2world[t].to(tracks.points))
        uv = camera.project(local, cameras.intrinsics[t].to(local))
        if tracked.pixels is not None:
            gap = (uv - tracked.pixels[t])[seen].norm(dim=-1)
            gaps.append(gap[gap.isfinite()])
    joined = torch.cat(gaps) if gaps else torch.zeros(0)
    if tracked.pixels is None:
        return 0.0  # nothing to compare with: the tracker says only where points are
    return float(joined.median()) if len(joined) else float("nan")


def _median_depth(tracked: Tracked) -> float:
    z = tracked.tracks.points[0, ..., 2][tracked.valid]
    return float(z.median()) if len(z) else 1.0
