"""Parts that score cameras: trajectories, relative poses, focal length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.evaluation import trajectory
from worldline.evaluation.pair import Pair, predicted_focal_px
from worldline.evaluation.parts import Part
from worldline.geometry import fit
from worldline.geometry.pose import Similarity


@dataclass(frozen=True, kw_only=True)
class TrajectoryPart(Part):
    """ATE and RPE as evo computes them.

    Attributes:
        alignment: none, se3 or sim3; also before the RPE.
        delta_frames: distance of the pairs of the RPE; all pairs.
        unit_displacement: measure in units of the distance from the first to the last true camera (MegaSaM).
    """

    alignment: trajectory.PoseAlignment = "sim3"
    delta_frames: int = 1
    unit_displacement: bool = False
    needs = ("cameras", "three_frames", "moving_camera")

    def names(self) -> tuple[tuple[str, str], ...]:
        """ATE, RPE translation, RPE rotation."""
        prefix = "unit_" if self.unit_displacement else ""
        metrics = (f"{prefix}ate", f"{prefix}rpe_translation", "rpe_rotation_deg")
        return tuple((metric, f"{self.alignment}/sequence") for metric in metrics)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Align centres, compare."""
        estimated, truth = pair.poses, pair.true_poses
        if self.unit_displacement:
            truth = trajectory.unit_displacement(truth)
        pairs = trajectory.frame_pairs(len(truth), self.delta_frames)
        relative = trajectory.relative_pose_error(estimated, truth, self.alignment, pairs)
        absolute = trajectory.absolute_trajectory_error(estimated, truth, self.alignment)
        numbers = (absolute, relative.translation, relative.rotation_deg)
        return dict(zip((name for name, _ in self.names()), numbers, strict=True)), len(truth)


@dataclass(frozen=True, kw_only=True)
class PoseAucPart(Part):
    """Pose AUC at whole-degree thresholds over all pairs of frames.

    Attributes:
        thresholds_deg: of the areas.
        signed: False forgives reversed translation directions, as the published script does.
    """

    thresholds_deg: tuple[int, ...] = (3, 30)
    signed: bool = False
    needs = ("cameras", "moving_camera")

    def names(self) -> tuple[tuple[str, str], ...]:
        """One AUC per threshold."""
        return tuple((f"pose_auc_{threshold}", "none/pair") for threshold in self.thresholds_deg)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Angles of all pairs."""
        rotation, translation = trajectory.pair_angles_deg(pair.poses, pair.true_poses, signed=self.signed)
        areas = {f"pose_auc_{t}": trajectory.pose_auc(rotation, translation, t) for t in self.thresholds_deg}
        return areas, len(rotation)


@dataclass(frozen=True, kw_only=True)
class PathPercentPart(Part):
    """ATE in percent of the length of the true path, after Sim(3); a camera that never moves gets the best place."""

    needs = ("cameras", "three_frames", "moving_camera")

    def names(self) -> tuple[tuple[str, str], ...]:
        """One ATE."""
        return (("ate_percent_path", "sim3/sequence"),)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """ATE over path length."""
        if trajectory.still(pair.poses):
            error = trajectory.still_error(pair.true_poses)
        else:
            error = trajectory.absolute_trajectory_error(pair.poses, pair.true_poses, "sim3")
        return {"ate_percent_path": 100 * error / trajectory.path_length(pair.true_poses)}, len(pair.poses)


@dataclass(frozen=True, kw_only=True)
class ScenePercentPart(Part):
    """Camera errors in percent of the scene's size, with the scale of the depth: defined for still cameras too.

    ATE after rotation and translation only; translation of the RPE between consecutive frames.
    """

    needs = ("points", "cameras", "two_frames")

    def names(self) -> tuple[tuple[str, str], ...]:
        """ATE, RPE translation."""
        return (
            ("ate_percent_scene", "se3_depth_scale/sequence"),
            ("rpe_translation_percent_scene", "depth_scale/sequence"),
        )

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Scale the camera centres like the depth, then compare."""
        truth = pair.true_poses
        scaled = pair.poses.clone()
        scaled[:, :3, 3] *= pair.depth_scale
        ate = trajectory.rms((_rigid(scaled, truth) - truth[:, :3, 3]).norm(dim=-1))
        values = {"ate_percent_scene": 100 * ate / pair.scene_size}
        relative = trajectory.relative_pose_error(scaled, truth, "none", trajectory.frame_pairs(len(truth), 1))
        values["rpe_translation_percent_scene"] = 100 * relative.translation / pair.scene_size
        return values, len(truth)


def _rigid(estimated: Tensor, truth: Tensor) -> Tensor:
    """Estimated centres after the best rotation and translation; only a translation where one side never moves."""
    centres, target = estimated[:, :3, 3], truth[:, :3, 3]
    if trajectory.still(estimated) or trajectory.still(truth):
        return centres + (target - centres).mean(0)
    return fit.umeyama(centres, target, with_scale=False).apply(centres)


@dataclass(frozen=True, kw_only=True)
class RotationPart(Part):
    """Root mean square angle of relative pose errors between consecutive frames; needs no alignment."""

    needs = ("cameras", "two_frames")

    def names(self) -> tuple[tuple[str, str], ...]:
        """One angle."""
        return (("rpe_rotation_deg", "none/pair"),)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Compare steps."""
        pairs = trajectory.frame_pairs(len(pair.truth), 1)
        relative = trajectory.relative_pose_error(pair.poses, pair.true_poses, "none", pairs)
        return {"rpe_rotation_deg": relative.rotation_deg}, relative.pairs


@dataclass(frozen=True, kw_only=True)
class FocalPart(Part):
    """Error of the focal length in percent, median over frames."""

    needs = ("cameras", "intrinsics")

    def names(self) -> tuple[tuple[str, str], ...]:
        """One error."""
        return (("focal_error_percent", "none"),)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Compare focal lengths at the truth's size."""
        assert pair.truth.cameras is not None
        estimated = predicted_focal_px(pair)
        error = trajectory.focal_error_percent(estimated, pair.truth.cameras.focal_px)
        return {"focal_error_percent": error}, len(estimated)


def aligned_paths(pair: Pair) -> tuple[Tensor, Tensor] | None:
    """Estimated camera centres after Sim(3) and the true ones, for a picture; None where there is no such thing."""
    if pair.prediction.cameras is None or pair.truth.cameras is None or len(pair.truth) < 3:
        return None
    estimated, truth = pair.poses, pair.true_poses
    if not bool(torch.isfinite(estimated).all()) or trajectory.still(truth):
        return None
    similarity: Similarity = (
        Similarity.identity(torch.float64)
        if trajectory.still(estimated)
        else trajectory.fit_alignment(estimated, truth, "sim3")
    )
    return similarity.apply(estimated[:, :3, 3]), truth[:, :3, 3]
