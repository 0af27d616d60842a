"""What converting a written data set must give back, and within which tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adapters_writers.truth import Truth, to
from worldline.scene import Scene4D

Step = Callable[[np.ndarray], np.ndarray]
FLOAT32 = 4e-6  # relative to the distance: float32 points after a change of frame in float64
EXACT: Step = lambda z: 1e-6 * z  # noqa: E731


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One sequence of a written data set."""

    truth: Truth
    name: str
    reason: str  # of the tolerances
    depth_step: Step = EXACT  # largest error of a z-depth
    flow_step: Step | None = None  # largest error of scene flow beyond those of the two points; None: no scene flow
    flow_known: np.ndarray | None = None  # [T, H, W]; default: all that is valid but the last frame
    flow_at_least: bool = False  # flow_known is what may be known, and most of it must be
    valid: np.ndarray | None = None  # [T, H, W]; default: all but the sky
    partial: bool = False  # only some pixels are known, those that tracks fall into; all of frame 0
    outliers: float = 0.0  # share of the pixels that a track fell into from beside an edge
    pose_step: float = 1e-6  # largest error of an entry of a pose, in metres
    rgb_step: float = 0.0  # mean error of the colours (jpeg)
    cameras: bool = True  # whether poses are known
    scale: str = "metric"
    settings: dict[str, Any] = field(default_factory=dict)
    tracks: tuple[np.ndarray, np.ndarray] | None = None  # (world positions [T, N, 3], visible [T, N])
    damage: tuple[str, ...] = ()  # a file of each pattern, cut, must be reported by name


def compare(scene: Scene4D, expected: Expected, start: int, stop: int) -> None:
    """The frames start..stop of the truth, in the world of frame `start`."""
    truth = expected.truth
    part = slice(start, stop)
    first = truth.world2cam[start]
    assert len(scene) == stop - start and scene.scale == expected.scale and scene.provenance.system == "truth"
    assert scene.cameras is not None
    wanted = first @ truth.cam2world[part] if expected.cameras else np.broadcast_to(np.eye(4), (stop - start, 4, 4))
    near(scene.cameras.cam2world, wanted, 4 * expected.pose_step, "poses")
    near(scene.cameras.intrinsics, np.broadcast_to(truth.k, (stop - start, 3, 3)), 1e-4 * truth.k[0, 0], "intrinsics")
    rgb = np.abs(scene.video.frames.numpy().astype(float) - truth.rgb[part])
    assert rgb.mean() <= expected.rgb_step, f"colours are off by {rgb.mean()}"
    valid = truth.depth[part] > 0 if expected.valid is None else expected.valid[part]
    if expected.partial:
        found = scene.valid.numpy()
        assert start > 0 or (found[0] == valid[0]).all()
        assert found.sum() > 0.5 * valid.sum() and (found & ~valid).sum() <= expected.outliers * valid.sum()
        valid = found
    assert (scene.valid.numpy() == valid).all(), f"{(scene.valid.numpy() != valid).sum()} pixels differ in validity"
    local = truth.local[part]
    points = to(first, truth.points[part]) if expected.cameras else local
    ray = np.linalg.norm(local, axis=-1) / np.maximum(truth.depth[part], 1e-12)
    far = np.linalg.norm(points, axis=-1) + np.linalg.norm(wanted[:, None, None, :3, 3], axis=-1) + 1
    step = 1.001 * expected.depth_step(truth.depth[part]) * ray + far * (FLOAT32 + 4 * expected.pose_step)
    error = np.linalg.norm(scene.points.numpy() - points, axis=-1)
    worst = (error / step)[valid].max(initial=0)
    good = ((error > step) & valid).sum() <= expected.outliers * valid.sum()
    assert good, f"points are off by {error[valid].max(initial=0)}, {worst} steps"
    assert (scene.points.numpy()[~valid] == 0).all()
    assert torch.isfinite(scene.points).all()
    compare_flow(scene, expected, start, stop, valid, step)
    for name, value in expected.settings.items():
        found: Any = scene.provenance.settings
        for key in name.split("."):
            found = found[key]
        assert found == value or (isinstance(value, float) and found >= value), f"{name} is {found}, not {value}"


def compare_flow(
    scene: Scene4D, expected: Expected, start: int, stop: int, valid: np.ndarray, step: np.ndarray
) -> None:
    truth, part = expected.truth, slice(start, stop)
    if expected.flow_step is None:
        assert scene.scene_flow is None
        return
    assert scene.scene_flow is not None and scene.flow_valid is not None
    known = valid.copy() if expected.flow_known is None else expected.flow_known[part].copy()
    known[-1] = False
    found = scene.flow_valid.numpy()
    if expected.flow_at_least:
        assert not (found & ~known).any() and found.sum() > 0.5 * known.sum(), f"{found.sum()} of {known.sum()}"
        known = found
    assert (found == known).all(), f"{(found != known).sum()} pixels differ in known flow"
    if expected.cameras:
        flow = truth.flow[part] @ truth.world2cam[start][:3, :3].T
    else:
        flow = np.concatenate([truth.ahead[start : stop - 1], truth.local[stop - 1 : stop]]) - truth.local[part]
    error = np.linalg.norm(scene.scene_flow.numpy() - flow, axis=-1)
    limit = 2 * step + expected.flow_step(truth.depth[part])
    good = (error <= limit)[known].mean() >= 1 - expected.outliers
    assert good, f"flow is off by {error[known].max()}, {(error / limit)[known].max()} limits"
    assert (scene.scene_flow.numpy()[~known] == 0).all()
    assert np.abs(flow[known]).max() > 1e-3 or not truth.flow[start : stop - 1].any(), "something moves"


def near(found: torch.Tensor, wanted: np.ndarray, tolerance: float, what: str) -> None:
    error = np.abs(found.numpy() - wanted).max()
    assert error <= tolerance, f"{what} are off by {error}"
