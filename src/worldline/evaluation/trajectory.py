"""Trajectory metrics: ATE, RPE, pose AUC, focal error, in double precision, agreeing with evo.

`estimated` and `truth` are camera-to-world poses of the same moments; `associate` finds the moments. Alignments are
fitted to the camera centres: none, se3 (rotation and translation), sim3 (and scale).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.geometry import fit, pose
from worldline.geometry.pose import Similarity

PoseAlignment = Literal["none", "se3", "sim3"]


@dataclass(frozen=True, kw_only=True)
class RelativePoseError:
    """Root mean square of the relative pose errors, and how many pairs there were."""

    translation: float
    rotation_deg: float
    pairs: int


def associate(
    first: Float[Tensor, " N"], second: Float[Tensor, " M"], max_difference_s: float = 0.01
) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]]:
    """Indices of the moments that both lists have, within `max_difference_s` seconds.

    Each time of the shorter list takes the nearest of the longer one, as evo does (TUM's rule: 0.01 s).
    """
    if len(second) < len(first):
        b, a = associate(second, first, max_difference_s)
        return a, b
    order = second.argsort()
    place = torch.searchsorted(second[order], first.contiguous()).clamp(0, len(second) - 1)
    before = (place - 1).clamp(min=0)
    left, right = (second[order][index] - first for index in (before, place))
    nearest = order[torch.where(left.abs() <= right.abs(), before, place)]
    kept = ((second[nearest] - first).abs() <= max_difference_s).nonzero()[:, 0]
    return kept, nearest[kept]


def path_length(cam2world: Float[Tensor, "T 4 4"]) -> float:
    """Length of the way the camera went, in the unit of the poses."""
    return float(cam2world[:, :3, 3].double().diff(dim=0).norm(dim=-1).sum())


def fit_alignment(
    estimated: Float[Tensor, "T 4 4"], truth: Float[Tensor, "T 4 4"], alignment: PoseAlignment
) -> Similarity:
    """The transformation of `estimated` that brings its camera centres closest to the truth's (Umeyama 1991).

    Raises ValueError when a similarity cannot be observed: fewer than three poses, or centres that all coincide.
    """
    if alignment == "none":
        return Similarity.identity(torch.float64, estimated.device)
    source, target = estimated[:, :3, 3].double(), truth[:, :3, 3].double()
    if len(source) < 3:
        raise ValueError(f"Aligning trajectories needs at least 3 common poses, got {len(source)}.")
    if still(estimated) or still(truth):
        raise ValueError(f"A {alignment} alignment cannot be found: one of the cameras never moves.")
    return fit.umeyama(source, target, with_scale=alignment == "sim3")


def still(cam2world: Float[Tensor, "T 4 4"]) -> bool:
    """Whether all camera centres coincide, to rounding."""
    centres = cam2world[:, :3, 3].double()
    spread = (centres - centres.mean(0)).norm(dim=-1).max()
    return bool(spread <= 1e-7 * max(1.0, float(centres.abs().max())))


def absolute_trajectory_error(
    estimated: Float[Tensor, "T 4 4"], truth: Float[Tensor, "T 4 4"], alignment: PoseAlignment
) -> float:
    """ATE: root mean square distance of camera centres after the alignment, in the truth's unit.

    Raises ValueError as `fit_alignment`. Source: Sturm et al. 2012; evo's APE with translation part.
    """
    aligned = fit_alignment(estimated, truth, alignment).apply(estimated[:, :3, 3].double())
    return rms((aligned - truth[:, :3, 3].double()).norm(dim=-1))


def still_error(truth: Float[Tensor, "T 4 4"]) -> float:
    """ATE of a camera that never moves, put where it hurts least: the spread of the true centres."""
    centres = truth[:, :3, 3].double()
    return rms((centres - centres.mean(0)).norm(dim=-1))


def frame_pairs(count: int, delta: int) -> Int[Tensor, "2 P"]:
    """All pairs (i, i + delta)."""
    start = torch.arange(max(count - delta, 0))
    return torch.stack([start, start + delta])


def path_pairs(cam2world: Float[Tensor, "T 4 4"], delta: float) -> Int[Tensor, "2 P"]:
    """Consecutive stretches of at least `delta` of path, in the poses' unit (evo's rule without all_pairs)."""
    steps = cam2world[:, :3, 3].double().diff(dim=0).norm(dim=-1).tolist()
    marks, walked = [0], 0.0
    for index, step in enumerate(steps, start=1):
        walked += step
        if walked >= delta:
            marks.append(index)
            walked = 0.0
    return torch.tensor([marks[:-1], marks[1:]], dtype=torch.int64)


def relative_pose_error(
    estimated: Float[Tensor, "T 4 4"],
    truth: Float[Tensor, "T 4 4"],
    alignment: PoseAlignment,
    pairs: Int[Tensor, "2 P"],
) -> RelativePoseError:
    """RPE over pairs (i, j): rms of (Q_i^-1 Q_j)^-1 (P_i^-1 P_j), translation and rotation angle.

    Q is the truth, P the estimate after the alignment (which only its scale matters to). Raises ValueError when there
    is no pair, or as `fit_alignment`. Source: Sturm et al. 2012; evo's RPE.
    """
    if pairs.shape[1] == 0:
        raise ValueError("The trajectory is too short: no pair of poses lies that far apart.")
    aligned = fit_alignment(estimated, truth, alignment).apply_pose(estimated.double())
    i, j = pairs[0], pairs[1]
    truth = truth.double()
    true_step = pose.inverse(truth[i]) @ truth[j]
    step = pose.inverse(aligned[i]) @ aligned[j]
    error = pose.inverse(true_step) @ step
    angles = pose.rotation_angle_deg(true_step[:, :3, :3], step[:, :3, :3])
    return RelativePoseError(
        translation=rms(error[:, :3, 3].norm(dim=-1)), rotation_deg=rms(angles), pairs=pairs.shape[1]
    )


def pair_angles_deg(
    estimated: Float[Tensor, "T 4 4"], truth: Float[Tensor, "T 4 4"], *, signed: bool = True
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Errors of relative rotation and of translation direction of all pairs of frames, in degrees.

    Directions of pairs that the truth does not move between count as right when the estimate does not move either, else
    90 degrees off. `signed=False` is the published variant that forgives a reversed direction.
    """
    i, j = torch.triu_indices(len(truth), len(truth), offset=1)
    true_step = pose.inverse(truth.double()[i]) @ truth.double()[j]
    step = pose.inverse(estimated.double()[i]) @ estimated.double()[j]
    rotation = pose.rotation_angle_deg(true_step[:, :3, :3], step[:, :3, :3])
    a, b = true_step[:, :3, 3], step[:, :3, 3]
    size_a, size_b = a.norm(dim=-1), b.norm(dim=-1)
    angle = torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1)).rad2deg()
    undefined = (size_a < 1e-12) | (size_b < 1e-12)
    angle = torch.where(undefined, torch.where((size_a < 1e-12) & (size_b < 1e-12), 0.0, 90.0), angle)
    return rotation, angle if signed else torch.minimum(angle, 180 - angle)


def pose_auc(rotation_deg: Float[Tensor, " P"], translation_deg: Float[Tensor, " P"], threshold_deg: int) -> float:
    """Area under the accuracy curve up to `threshold_deg`, of the worse of both errors, in 0..1.

    Mean over whole degrees k = 1..threshold of the share of pairs with an error below k. Source: PoseDiffusion (Wang
    et al. 2023), used by VGGT.
    """
    worst = torch.maximum(rotation_deg, translation_deg)
    limits = torch.arange(1, threshold_deg + 1, dtype=worst.dtype)
    return float((worst[None] < limits[:, None]).double().mean())


def unit_displacement(truth: Float[Tensor, "T 4 4"]) -> Float[Tensor, "T 4 4"]:
    """The trajectory in units of the distance between its first and last camera (MegaSaM's Sintel evaluation).

    Raises ValueError when both coincide.
    """
    span = float((truth[-1, :3, 3] - truth[0, :3, 3]).norm())
    if span < 1e-12:
        raise ValueError("First and last camera coincide: their distance cannot serve as the unit.")
    scaled = truth.clone()
    scaled[:, :3, 3] /= span
    return scaled


def focal_error_percent(estimated_px: Float[Tensor, " T"], truth_px: Float[Tensor, " T"]) -> float:
    """Median over frames of 100 |f - f*| / f*."""
    return float(100 * ((estimated_px.double() - truth_px.double()).abs() / truth_px.double()).median())


def rms(values: Float[Tensor, " N"]) -> float:
    """Root of the mean square."""
    return math.sqrt(float(values.double().square().mean()))
