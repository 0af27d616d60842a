"""3D point tracks: TAPVid-3D's AJ, APD and OA, and tracks from a scene that only has scene flow."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry import camera, pointmap, pose
from worldline.scene import Scene4D

TrackScaling = Literal["median", "mean", "none"]

PIXEL_THRESHOLDS = (1, 2, 4, 8, 16)
METRIC_THRESHOLDS = (0.01, 0.04, 0.16, 0.64, 2.56)
"""Metres that stand for the five pixel thresholds where a data set uses fixed ones."""


def scale_of_tracks(
    predicted: Float[Tensor, "T N 3"], truth: Float[Tensor, "T N 3"], both: Bool[Tensor, "T N"], scaling: TrackScaling
) -> float:
    """Factor on the prediction: ratio of medians (or means) of |point| over points visible in both; "none" is 1.

    Raises ValueError when no point is visible in both.
    """
    if scaling == "none":
        return 1.0
    if not bool(both.any()):
        raise ValueError("No track is visible in both prediction and truth: their scale cannot be compared.")
    sizes = [points.double().norm(dim=-1)[both] for points in (truth, predicted)]
    middle = [_median(size) if scaling == "median" else float(size.mean()) for size in sizes]
    return middle[0] / max(middle[1], 1e-12)


def _median(values: Tensor) -> float:
    """The mean of the two middle values, as numpy has it."""
    ordered = values.sort().values
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def track_scores(
    predicted: Float[Tensor, "T N 3"],
    predicted_visible: Bool[Tensor, "T N"],
    truth: Float[Tensor, "T N 3"],
    truth_visible: Bool[Tensor, "T N"],
    focal_px: Float[Tensor, " T"],
    *,
    scaling: TrackScaling = "median",
    metric_thresholds: bool = False,
) -> dict[str, float]:
    """3D-AJ (average Jaccard), APD (share of points within reach) and OA (occlusion accuracy), in 0..1.

    Points are in the camera of their time. A point is within reach if it is closer than 1, 2, 4, 8, 16 pixels
    back-projected to its true depth (z / f), or than fixed metres; both scores average the five. APD counts points
    visible in the truth; the Jaccard also punishes points wrongly shown. Source: TAPVid-3D (Koppula et al. 2024), s. 4.
    """
    visible, shown = truth_visible, predicted_visible
    factor = scale_of_tracks(predicted, truth, visible & shown, scaling)
    distance = (factor * predicted.double() - truth.double()).norm(dim=-1)
    reach = truth[..., 2].double() / focal_px.double()[:, None]
    jaccards, shares = [], []
    for pixels, metres in zip(PIXEL_THRESHOLDS, METRIC_THRESHOLDS, strict=True):
        near = distance < (torch.full_like(reach, metres) if metric_thresholds else pixels * reach)
        true_positive = (near & visible & shown).sum()
        false_positive = (shown & (~visible | ~near)).sum()
        jaccards.append(int(true_positive) / max(int(visible.sum() + false_positive), 1))
        shares.append(int((near & visible).sum()) / max(int(visible.sum()), 1))
    return {
        "track_aj": sum(jaccards) / 5,
        "track_apd": sum(shares) / 5,
        "track_oa": float((visible == shown).double().mean()),
    }


def tracks_of_scene(
    scene: Scene4D, reference: int = 0, rtol: float = 0.05
) -> tuple[Float[Tensor, "T H W 3"], Bool[Tensor, "T H W"]]:
    """World tracks of one frame's pixels, and where they are visible: a scene's own, else carried by its scene flow.

    A scene with `extras["tracks"]` (of its first frame) is taken at its word. Otherwise a point moves with the flow of
    the pixel it projects to as long as the surface there is at its depth (within `rtol`), and stands still, invisible,
    while it is hidden or out of view. Tracks start at `reference`; earlier frames repeat it, not visible.

    Raises ValueError when the scene has neither tracks nor both cameras and scene flow.
    """
    if "tracks" in scene.extras and reference == 0:
        points = scene.extras["tracks"].float()
        visible = scene.extras.get("visible_from_reference")
        return points, torch.ones(points.shape[:3], dtype=torch.bool) if visible is None else visible.bool()
    if scene.cameras is None or scene.scene_flow is None or scene.flow_valid is None:
        raise ValueError("Tracks need either tracks, or cameras and scene flow; this scene has neither.")
    depth = pointmap.scene_depth(scene)
    points = scene.points[reference].clone().repeat(len(scene), 1, 1, 1)
    visible = torch.zeros_like(scene.valid)
    now = scene.points[reference]
    for time in range(reference, len(scene)):
        points[time] = now
        row, column, seen = _landing(scene, depth, now, time, rtol)
        visible[time] = seen & scene.valid[reference]
        moves = seen & scene.flow_valid[time][row, column]
        now = torch.where(moves[..., None], now + scene.scene_flow[time][row, column], now)
    return points, visible


def _landing(scene: Scene4D, depth: Tensor, points: Tensor, time: int, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column each point projects to at a time, and whether the surface there is at its depth."""
    assert scene.cameras is not None
    local = pose.transform(pose.inverse(scene.cameras.cam2world[time]), points)
    pixel = camera.project(local, scene.cameras.intrinsics[time].to(local.dtype)).round()
    height, width = scene.size
    inside = (pixel >= 0).all(-1) & (pixel[..., 0] < width) & (pixel[..., 1] < height) & (local[..., 2] > 0)
    column = pixel[..., 0].nan_to_num(0).clamp(0, width - 1).long()
    row = pixel[..., 1].nan_to_num(0).clamp(0, height - 1).long()
    there = depth[time][row, column]
    near = (there - local[..., 2]).abs() <= rtol * local[..., 2].abs()
    return row, column, inside & near & scene.valid[time][row, column]
