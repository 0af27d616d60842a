"""Many windows, one world: observations in, cameras and one consistent scene out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.align.alignment import Alignment
from worldline.align.config import AlignConfig, KnownDistance, Priors
from worldline.align.initialize import Start, initialize, world_points
from worldline.align.metric import metric_factor
from worldline.align.observation import Observation
from worldline.align.resection import CameraTask, Rig, refine
from worldline.align.sampling import Samples, gather
from worldline.align.synchronize import masked_quantile
from worldline.geometry.pose import Similarity, from_rt
from worldline.scene import Cameras, Progress, no_progress

__all__ = ["AlignConfig", "Alignment", "KnownDistance", "Observation", "Priors", "solve"]


def solve(
    observations: Sequence[Observation],
    num_frames: int,
    size: tuple[int, int],
    priors: Priors = Priors(),
    config: AlignConfig = AlignConfig(),
    progress: Progress = no_progress,
) -> Alignment:
    """Join windows into one world and solve a camera for every frame.

    Args:
        observations: one per window, each in its own frame and scale; may be lazy (read twice, in order).
        num_frames: T of the video.
        size: (H, W) of the observations.
        priors: what is known beforehand.
        config: settings.
        progress: told about each phase.

    Returns:
        the alignment: cameras in pixels and cam2world with world = first camera (or of the known poses), fields on
        demand. What could not be determined is said in `report["undetermined"]`; nothing is ever NaN.

    Raises:
        ValueError: observations or priors that do not fit the video.
    """
    priors.check(num_frames, size)
    clock = _Clock(progress)
    # 1. a stratified subset of pixels of every window
    samples = gather(observations, num_frames, size, priors, config.samples_per_frame, config.seed)
    frames = tuple(tuple(samples.frame[samples.window == k].tolist()) for k in range(samples.num_windows))
    xy, principal = measured_pixels(samples.uv, size, priors)
    clock.done("read windows", 1)
    # 2. windows joined, first cameras
    start = initialize(samples, xy, size, priors, config)
    clock.done("join windows", 2)
    # 3. cameras and focal together
    samples = replace(samples, weight=samples.weight * start.kept[samples.window][:, None])
    rig, error_px, notes = refine_cameras(samples, xy, size, start, priors)
    clock.done("solve cameras", 3)
    # 4. the world of the first camera or of known poses, the metric scale
    windows, pose = settle_world(start.windows, rig, num_frames, priors)
    cameras = make_cameras(pose, rig, principal, size, num_frames, priors)
    report = {**start.notes, **notes, "seconds": clock.seconds}
    alignment = Alignment(
        cameras=cameras, windows=windows, kept=start.kept, report=report, observations=observations,
        rays=full_rays(cameras, principal, size, priors), config=config,
        reference_weight=_reference_weight(samples), dynamic_threshold=_dynamic_threshold(samples, windows, cameras, config),
        window_frames=frames,
    )  # fmt: skip
    alignment = metric_factor(alignment, priors)
    _tell(alignment.report, samples, alignment.windows, pose, start, error_px)
    clock.done("scene", 4)
    return alignment


class _Clock:
    """Seconds per phase, and the progress callback."""

    phases = 4

    def __init__(self, progress: Progress) -> None:
        self.progress, self.seconds, self.last = progress, {}, time.perf_counter()

    def done(self, phase: str, count: int) -> None:
        now = time.perf_counter()
        self.seconds[phase] = round(now - self.last, 4)
        self.last = now
        self.progress(f"align: {phase}", count, self.phases)


def measured_pixels(
    uv: Float[Tensor, "T n 2"], size: tuple[int, int], priors: Priors
) -> tuple[Float[Tensor, "T n 2"], Float[Tensor, "T 2"]]:
    """Undistorted pixels of the samples from the principal point (square pixels), and the principal point per frame."""
    T = len(uv)
    if priors.intrinsics is None:
        default = ((size[1] - 1) / 2, (size[0] - 1) / 2)
        principal = torch.tensor(priors.principal_point or default, dtype=torch.float64).expand(T, 2)
        return uv - principal[:, None], principal
    K = priors.intrinsics.double().expand(T, 3, 3)
    ray = undistort((uv - K[:, None, :2, 2]) / torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)[:, None], priors.distortion)
    focal = (K[:, 0, 0] * K[:, 1, 1]).sqrt()
    return ray * focal[:, None, None], K[:, :2, 2]


def undistort(xy: Float[Tensor, "*b 2"], coefficients: tuple[float, ...] | None) -> Float[Tensor, "*b 2"]:
    """Ideal normalised coordinates of distorted ones, by fixed-point iteration of OpenCV's model (k1, k2, p1, p2, k3)."""
    if coefficients is None:
        return xy
    k1, k2, p1, p2, k3 = (*coefficients, *([0.0] * (5 - len(coefficients))))[:5]
    ideal = xy
    for _ in range(20):
        x, y = ideal[..., 0], ideal[..., 1]
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        dx = 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        dy = p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        ideal = (xy - torch.stack([dx, dy], -1)) / radial[..., None].clamp_min(0.1)
    return ideal


def refine_cameras(
    samples: Samples, xy: Tensor, size: tuple[int, int], start: Start, priors: Priors
) -> tuple[Rig, float, dict[str, Any]]:
    """All poses and the focal together on the joined windows; reprojection error in pixels."""
    points = world_points(samples, start.windows)
    C = len(start.rig.centre)
    slot = samples.frame if C > 1 else torch.zeros_like(samples.frame)
    z = ((points - start.rig.centre[slot][:, None]) * start.rig.rotation[slot][:, None, :, 2]).sum(-1)
    ahead = (samples.weight > 0) & (z > 0)
    depth = float(masked_quantile(z.flatten(), ahead.flatten(), 0.5)) or 1.0
    usable = samples.weight > 0
    typical = samples.weight[usable].mean() if bool(usable.any()) else torch.tensor(1.0)
    own = len(start.rig.log_focal) > 1
    task = CameraTask(
        xy=xy[samples.frame], points=points, weight=(samples.weight / typical).clamp(max=10.0), slot=slot,
        focal_slot=torch.arange(C) if own else torch.zeros(C, dtype=torch.long),
        fixed_pose=torch.zeros(C, dtype=torch.bool), fixed_focal=priors.intrinsics is not None,
        prior_focal_px=1.0 * max(size), depth=depth,
    )  # fmt: skip
    rig, sigma = refine(task, start.rig)
    notes: dict[str, Any] = {"frames_without_camera": torch.nonzero(~start.solved).flatten().tolist()}
    return rig, float(sigma[usable.any(1)].median()) if bool(usable.any()) else math.inf, notes


def settle_world(
    windows: Similarity, rig: Rig, num_frames: int, priors: Priors
) -> tuple[Similarity, Float[Tensor, "T 4 4"]]:
    """Express windows and poses in the world of the first camera, or of the known poses."""
    pose = from_rt(rig.rotation, rig.centre)
    pose = pose.expand(num_frames, 4, 4) if len(pose) == 1 else pose
    known = priors.known_poses()
    if known is None or priors.poses is None:
        R, c = pose[0, :3, :3], pose[0, :3, 3]
        world = Similarity(scale=torch.ones((), dtype=torch.float64), rotation=R.mT, translation=-(R.mT @ c))
    else:
        world = similarity_of_poses(pose[known], priors.poses[known].double())
    moved = world.apply_pose(pose)
    if known is not None and priors.poses is not None:
        moved[known] = priors.poses[known].double()
    one = Similarity(
        scale=world.scale.expand_as(windows.scale), rotation=world.rotation.expand_as(windows.rotation),
        translation=world.translation.expand_as(windows.translation),
    )  # fmt: skip
    return one.compose(windows), moved


def similarity_of_poses(source: Float[Tensor, "n 4 4"], target: Float[Tensor, "n 4 4"]) -> Similarity:
    """Similarity that brings cameras onto cameras: rotation from the orientations, scale from the spread of centres."""
    u, _, vt = torch.linalg.svd((target[:, :3, :3] @ source[:, :3, :3].mT).sum(0))
    rotation = u @ torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vt).sign())]).double()) @ vt
    a, b = source[:, :3, 3], target[:, :3, 3]
    da, db = (a - a.mean(0)) @ rotation.mT, b - b.mean(0)
    spread = (da * da).sum()
    scale = (
        ((da * db).sum() / spread).clamp_min(1e-6)
        if float(spread) > 1e-12 and float((db * db).sum()) > 0
        else spread.new_ones(())
    )
    return Similarity(scale=scale, rotation=rotation, translation=b.mean(0) - scale * rotation @ a.mean(0))


def make_cameras(
    pose: Tensor, rig: Rig, principal: Tensor, size: tuple[int, int], num_frames: int, priors: Priors
) -> Cameras:
    """Pinhole cameras per frame."""
    if priors.intrinsics is not None:
        K = priors.intrinsics.double().expand(num_frames, 3, 3).clone()
    else:
        focal = rig.log_focal.exp().expand(num_frames)
        K = torch.zeros(num_frames, 3, 3, dtype=torch.float64)
        K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = focal, focal, 1.0
        K[:, :2, 2] = principal
    return Cameras(intrinsics=K, cam2world=pose.clone(), size=(int(size[0]), int(size[1])))


def full_rays(cameras: Cameras, principal: Tensor, size: tuple[int, int], priors: Priors) -> Float[Tensor, "*T H W 3"]:
    """Rays with z = 1 of every pixel; one set for all frames when the intrinsics do not change."""
    K = cameras.intrinsics
    K = K[0] if bool((K == K[0]).all()) else K
    y, x = torch.meshgrid(torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij")
    uv = torch.stack([x, y], -1)
    lead = K.shape[:-2]
    centre, focal = K[..., :2, 2], torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)
    shape = (*lead, 1, 1, 2)
    ray = undistort((uv - centre.reshape(shape)) / focal.reshape(shape), priors.distortion)
    return torch.cat([ray, torch.ones_like(ray[..., :1])], -1).float()


def _reference_weight(samples: Samples) -> float:
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


def _dynamic_threshold(samples: Samples, windows: Similarity, cameras: Cameras, config: AlignConfig) -> float:
    """The configured threshold, or three times the disagreement between windows where that is larger."""
    gap = _disagreement(samples, windows, cameras.cam2world)
    shared = (samples.weight > 0) & (gap > 1e-12)
    noise = float(masked_quantile(gap.flatten(), shared.flatten(), 0.5)) if bool(shared.any()) else 0.0
    return max(config.dynamic_threshold, 3 * noise)


def _tell(
    report: dict[str, Any], samples: Samples, windows: Similarity, pose: Tensor, start: Start, error_px: float
) -> None:
    """What can be said about the result: error, drift between windows, what is not observable."""
    gap = _disagreement(samples, windows, pose * 1.0)
    shared = (samples.weight > 0) & (gap > 1e-12)
    report["reprojection_error_px"] = round(error_px, 4) if math.isfinite(error_px) else None
    report["window_disagreement"] = float(masked_quantile(gap.flatten(), shared.flatten(), 0.5))
    path = (pose[1:, :3, 3] - pose[:-1, :3, 3]).norm(dim=-1).sum()
    undetermined = list(report.get("undetermined", []))
    if report["frames_without_camera"]:
        undetermined.append(f"cameras of frames {report['frames_without_camera']}: no usable points, interpolated")
    if report.get("focal_contrast", 1.0) < 0.05:
        undetermined.append("focal: the points fit almost equally well for every focal (little depth variation)")
    report["undetermined"] = undetermined
    report["path_length"] = float(path)
