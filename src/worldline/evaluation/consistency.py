"""How much of a video was understood as what it was made to be: reconstructed cameras and depth against those it shows.

Nothing here is truth: a bad number says that reconstruction and video disagree, not which of them is wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.evaluation import trajectory
from worldline.evaluation.depth import depth_errors
from worldline.geometry.fit import scale_median
from worldline.geometry.pointmap import scene_depth
from worldline.scene import Scene4D


def consistency(
    found: Scene4D,
    path: Float[Tensor, "T 4 4"],
    depth: Float[Tensor, "T H W"],
    coverage: Bool[Tensor, "T H W"],
) -> dict[str, Any]:
    """Agreement of a reconstruction with the camera path and depth that a video was rendered from.

    Args:
        found: the reconstruction of the video, at any size.
        path: cam2world of each frame.
        depth: rendered z-depth, in the unit of the path.
        coverage: where it was rendered, not invented.

    Returns:
        `camera_error_percent` (trajectory error after a similarity, of the path's length) beside
        `still_camera_percent` (of a camera that never moves), `rotation_deg` (median error of each pose's turn against
        the first), `depth_abs_rel` and `depth_inliers` (delta < 1.25) after one scale for all frames, `compared` (share
        of covered pixels with a reconstructed depth). None where it cannot be told: no cameras, or a path that stands
        still.
    """
    out: dict[str, Any] = dict.fromkeys(
        ("camera_error_percent", "still_camera_percent", "rotation_deg", "depth_abs_rel", "depth_inliers")
    )
    if found.cameras is not None:
        poses, wanted = found.cameras.cam2world.double().cpu(), path.double().cpu()
        length = trajectory.path_length(wanted)
        if len(wanted) >= 3 and not trajectory.still(wanted):
            out["still_camera_percent"] = 100 * trajectory.still_error(wanted) / length
            if trajectory.still(poses):
                out["camera_error_percent"] = out["still_camera_percent"]
            else:
                out["camera_error_percent"] = 100 * trajectory.absolute_trajectory_error(poses, wanted, "sim3") / length
        turns = [rotations[:1].transpose(-1, -2) @ rotations for rotations in (poses[:, :3, :3], wanted[:, :3, :3])]
        trace = (turns[0].transpose(-1, -2) @ turns[1]).diagonal(dim1=-2, dim2=-1).sum(-1)
        out["rotation_deg"] = float(((trace - 1) / 2).clamp(-1, 1).acos().rad2deg().median())
    seen = torch.nn.functional.interpolate(scene_depth(found)[:, None].float().cpu(), depth.shape[1:], mode="nearest")
    valid = torch.nn.functional.interpolate(found.valid[:, None].float().cpu(), depth.shape[1:], mode="nearest")
    both = coverage.cpu() & (valid[:, 0] > 0.5) & (depth.cpu() > 0) & seen[:, 0].isfinite() & (seen[:, 0] > 0)
    out["compared"] = float(both.sum() / coverage.sum().clamp(min=1))
    if bool(both.any()):
        guess, truth = seen[:, 0][both].double(), depth.cpu()[both].double()
        errors = depth_errors(guess * scale_median(guess, truth), truth)
        out["depth_abs_rel"], out["depth_inliers"] = errors["abs_rel"], errors["delta_1.25"]
    return out
