"""Which world the result is in: the first camera's or that of known poses."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.align.config import Priors
from worldline.align.initialize import Start
from worldline.align.state import State
from worldline.geometry.pose import Similarity, from_rt
from worldline.scene import Cameras


def known_world(start: Start, priors: Priors) -> Start:
    """The start moved into the world of the known poses, which replace the estimated ones; unchanged without any."""
    known = priors.known_poses()
    if known is None or priors.poses is None or len(start.rig.centre) != len(known):
        return start
    pose = from_rt(start.rig.rotation, start.rig.centre)
    move = similarity_of_poses(pose[known], priors.poses[known].double())
    pose = move.apply_pose(pose)
    pose[known] = priors.poses[known].double()
    rig = replace(start.rig, rotation=pose[:, :3, :3], centre=pose[:, :3, 3])
    return replace(start, rig=rig, windows=_after(move, start.windows))


def final_world(
    state: State, principal: Float[Tensor, "T 2"], size: tuple[int, int], num_frames: int, priors: Priors
) -> tuple[Similarity, Cameras]:
    """Windows and cameras in the frame of the first camera, or of the known poses."""
    pose = from_rt(state.rotation, state.centre)
    pose = pose.expand(num_frames, 4, 4) if len(pose) == 1 else pose
    windows = state.windows
    if priors.known_poses() is None:
        windows, pose = first_camera_world(windows, pose)
    return windows, make_cameras(pose, state, principal, size, num_frames, priors)


def first_camera_world(windows: Similarity, pose: Float[Tensor, "T 4 4"]) -> tuple[Similarity, Float[Tensor, "T 4 4"]]:
    """Windows and poses in the frame of the first camera."""
    R, c = pose[0, :3, :3], pose[0, :3, 3]
    move = Similarity(scale=torch.ones((), dtype=torch.float64), rotation=R.mT, translation=-(R.mT @ c))
    moved = move.apply_pose(pose)
    moved[0] = torch.eye(4, dtype=torch.float64)
    return _after(move, windows), moved


def _after(move: Similarity, windows: Similarity) -> Similarity:
    one = Similarity(
        scale=move.scale.expand_as(windows.scale), rotation=move.rotation.expand_as(windows.rotation),
        translation=move.translation.expand_as(windows.translation),
    )  # fmt: skip
    return one.compose(windows)


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
    pose: Tensor, state: State, principal: Tensor, size: tuple[int, int], num_frames: int, priors: Priors
) -> Cameras:
    """Pinhole cameras per frame."""
    if priors.intrinsics is not None:
        K = priors.intrinsics.double().expand(num_frames, 3, 3).clone()
    else:
        focal = state.log_focal.exp().expand(num_frames)
        K = torch.zeros(num_frames, 3, 3, dtype=torch.float64)
        K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = focal, focal, 1.0
        K[:, :2, 2] = principal
    return Cameras(intrinsics=K, cam2world=pose.clone(), size=(int(size[0]), int(size[1])))
