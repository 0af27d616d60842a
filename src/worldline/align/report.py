"""What can be said about an alignment: noise levels, agreement of windows, what is not observable."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.align.config import AlignConfig
from worldline.align.initialize import Start, world_points
from worldline.align.sampling import Samples
from worldline.align.synchronize import Pairs, masked_quantile
from worldline.geometry.pose import Similarity, rotation_angle_deg
from worldline.scene import Cameras

_MOST_BLUR = 0.03  # of the image: reprojection noise above which cameras mean nothing


def reference_weight(samples: Samples) -> float:
    """Summed confidence of a typical pixel."""
    total = torch.zeros(samples.num_frames, samples.weight.shape[1], dtype=torch.float64)
    total.index_add_(0, samples.frame, samples.weight)
    seen = total[total > 0]
    return float(seen.quantile(0.5)) if 0 < len(seen) < 10**7 else float(seen[: 10**7].median()) if len(seen) else 1.0


def _disagreement(samples: Samples, windows: Similarity, pose: Tensor) -> Float[Tensor, "V n"]:
    """Distance of each sample to the mean over windows, relative to depth; NaN-free, 0 where unseen."""
    points = world_points(samples, windows)
    T, n = samples.num_frames, points.shape[1]
    total = torch.zeros(T, n, dtype=torch.float64).index_add_(0, samples.frame, samples.weight)
    mean = torch.zeros(T, n, 3, dtype=torch.float64).index_add_(0, samples.frame, points * samples.weight[..., None])
    mean = mean / total.clamp_min(1e-12)[..., None]
    depth = (mean - pose[:, None, :3, 3]).norm(dim=-1).clamp_min(1e-9)
    return (points - mean[samples.frame]).norm(dim=-1) / depth[samples.frame]


def dynamic_threshold(samples: Samples, windows: Similarity, cameras: Cameras, config: AlignConfig) -> float:
    """The configured threshold, or the noise level where that is larger.

    With scene flow: four times its typical length relative to depth (most pixels stand still, so this is noise).
    Without: three times the disagreement between windows.
    """
    if samples.scene_flow is not None and samples.flow_weight is not None:
        k, n = samples.window, samples.frame
        depth = (world_points(samples, windows) - cameras.cam2world[n, None, :3, 3]).norm(dim=-1).clamp_min(1e-9)
        length = windows.scale[k][:, None] * samples.scene_flow.norm(dim=-1) / depth
        used = samples.flow_weight > 0
        noise = 4 * float(masked_quantile(length.flatten(), used.flatten(), 0.5))
        return max(config.dynamic_threshold, noise)
    gap = _disagreement(samples, windows, cameras.cam2world)
    shared = (samples.weight > 0) & (gap > 1e-12)
    noise = float(masked_quantile(gap.flatten(), shared.flatten(), 0.5)) if bool(shared.any()) else 0.0
    return max(config.dynamic_threshold, 3 * noise)


def _pair_drift(pairs: Pairs, windows: Similarity, trusted: Tensor) -> list[dict[str, Any]]:
    """By how much the pairwise fit of every two consecutive overlapping windows differs from where they were put.

    What remains is what no similarity of a whole window can explain: windows that bend or scale within themselves.
    """
    if not len(pairs.first):
        return []
    first, second = pairs.first, pairs.second
    one, two = (
        Similarity(scale=windows.scale[i], rotation=windows.rotation[i], translation=windows.translation[i])
        for i in (first, second)
    )
    off = pairs.fit.compose(one.inverse().compose(two))  # window l -> k by the result -> l by the pairwise fit
    size = pairs.target.norm(dim=-1).median(1).values.clamp_min(1e-12)
    rows = torch.stack([off.scale, rotation_angle_deg(off.rotation, torch.eye(3).double().expand_as(off.rotation))], 1)
    return [
        {"windows": [int(k), int(l)], "scale": round(float(row[0]), 5), "deg": round(float(row[1]), 4),
         "shift": round(float(step.norm() / unit), 5), "inliers": round(float(share), 3), "trusted": bool(good)}
        for k, l, row, step, unit, share, good in zip(
            first, second, rows, off.translation, size, pairs.inliers, trusted, strict=True)
        if int(l) == int(k) + 1
    ]  # fmt: skip


def summarise(
    report: dict[str, Any], samples: Samples, windows: Similarity, cameras: Cameras, start: Start
) -> dict[str, Any]:
    """Entries of the report about the result as a whole."""
    pose = cameras.cam2world
    gap = _disagreement(samples, windows, pose)
    shared = (samples.weight > 0) & (gap > 1e-12)
    path = (pose[1:, :3, 3] - pose[:-1, :3, 3]).norm(dim=-1).sum()
    missing = torch.nonzero(~start.solved).flatten().tolist()
    undetermined = list(report.get("undetermined", []))
    if missing:
        undetermined.append(f"cameras of frames {missing}: no usable points, interpolated")
    if report.get("focal_guessed"):
        undetermined.append(
            "focal: the points do not determine it (they fit extreme focals as well: little depth variation); "
            f"{float(cameras.focal_px[0]):.1f} px is "
            + ("what the ray maps say" if report.get("objective", {}).get("rays") else "a guess")
        )
    if report.get("focal_contradicted") and not report.get("focal_guessed"):
        undetermined.append(
            f"the given focal of {float(cameras.focal_px[0]):.1f} px contradicts the points, which say "
            f"{report['focal_px_of_points']:.1f} px"
        )
    blur = float(report.get("noise", {}).get("lateral_px", 0.0))
    if blur > _MOST_BLUR * max(cameras.size):
        undetermined.append(
            f"cameras: the points miss their own pixels by {blur:.1f} px on average, as if no camera had seen them"
        )
    if report.get("frames_unreliable"):
        undetermined.append(f"cameras of frames {report['frames_unreliable']}: fewer than 30 % of their pixels agree")
    return {
        "window_disagreement": float(masked_quantile(gap.flatten(), shared.flatten(), 0.5)),
        "path_length": float(path),
        "window_drift": _pair_drift(start.pairs, windows, start.trusted),
        "frames_without_camera": missing,
        "undetermined": undetermined,
    }
