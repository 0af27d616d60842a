"""What one modality says about a whole video by itself: rays give cameras, disparity gives depth, neither the other.

In the objective of the paper (eq. 10) depth and cameras meet only in the term of the points. Without points the rest
falls apart into two problems that know nothing of each other; both are solved here window after window, over the frames
it shares with those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.align.observation import Observation
from worldline.geometry import fit, pose
from worldline.geometry.pose import Similarity
from worldline.systems.geo4d import representation as rep

STILL = 1e-6
"""Camera centres that spread less than this, in units of the window, give no scale."""


def join_disparity(observations: Sequence[Observation], num_frames: int) -> Float[Tensor, "T H W"]:
    """Disparity of every frame, up to one scale and shift: windows brought onto those before them, then averaged.

    Each window gets the scale and shift that minimise the absolute difference on shared frames (eq. 5 without points).

    Raises:
        ValueError: an observation without disparity, or windows that share no frame.
    """
    total: Tensor | None = None
    count = torch.zeros(num_frames)
    for observation in observations:
        if observation.disparity is None:
            raise ValueError("Disparity alone needs observations with disparity.")
        found, frames = observation.disparity, list(observation.frames)
        if total is None:
            total = torch.zeros(num_frames, *found.shape[1:])
        else:
            shared, own = _shared(frames, count)
            before = total[shared] / count[shared][:, None, None]
            scale, shift = fit.scale_shift_l1(found[own], before)
            found = scale * found + shift
        total[frames] += found
        count[frames] += 1
    if total is None or not bool((count > 0).all()):
        raise ValueError("Disparity alone needs a window for every frame.")
    return total / count[:, None, None]


def join_cameras(
    observations: Sequence[Observation], num_frames: int, method: Literal["published", "paper"] = "paper"
) -> Float[Tensor, "T 4 4"]:
    """A pose for every frame from rays alone, in the frame and unit of the first window.

    Each window's cameras are moved onto those before them by the similarity that fits the poses of shared frames; a
    frame that several windows saw gets the mean of its centres and the rotation nearest to the mean of its rotations.
    `method` as in `representation.ray_cameras`.

    Raises:
        ValueError: an observation without rays, or windows that share no frame.
    """
    rotation, centre = torch.zeros(num_frames, 3, 3).double(), torch.zeros(num_frames, 3).double()
    count = torch.zeros(num_frames)
    for observation in observations:
        if observation.ray_direction is None or observation.ray_moment is None:
            raise ValueError("Rays alone need observations with rays.")
        rays = (observation.ray_direction.double(), observation.ray_moment.double())
        _, found = rep.ray_cameras(rays, method)
        frames = list(observation.frames)
        if bool(count.any()):
            shared, own = _shared(frames, count)
            before = pose.from_rt(nearest_rotation(rotation[shared]), centre[shared] / count[shared][:, None])
            found = similarity_of_poses(found[own], before).apply_pose(found)
        rotation[frames] += found[:, :3, :3]
        centre[frames] += found[:, :3, 3]
        count[frames] += 1
    if not bool((count > 0).all()):
        raise ValueError("Rays alone need a window for every frame.")
    return pose.from_rt(nearest_rotation(rotation), centre / count[:, None])


def similarity_of_poses(source: Float[Tensor, "N 4 4"], target: Float[Tensor, "N 4 4"]) -> Similarity:
    """The similarity that brings cameras onto others: rotation from their rotations, scale from how centres spread.

    Unlike a fit of the centres alone it exists for one frame, and for cameras that stand still or go straight. Without
    spread the scale is 1.
    """
    turn = nearest_rotation((target[:, :3, :3] @ source[:, :3, :3].mT).sum(0))
    mean_source, mean_target = source[:, :3, 3].mean(0), target[:, :3, 3].mean(0)
    spread, aim = pose.rotate(turn, source[:, :3, 3] - mean_source), target[:, :3, 3] - mean_target
    moved = float(spread.norm()) > STILL and float(aim.norm()) > STILL
    scale = (aim.square().sum() / spread.square().sum()).sqrt() if moved else torch.ones_like(mean_source[0])
    return Similarity(scale=scale, rotation=turn, translation=mean_target - scale * (turn @ mean_source))


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation nearest to a matrix (the mean of rotations, when it is their sum)."""
    u, _, vt = torch.linalg.svd(matrix)
    sign = torch.ones_like(u[..., 0])
    sign[..., 2] = torch.linalg.det(u @ vt).sign()
    return (u * sign[..., None, :]) @ vt


def _shared(frames: list[int], count: Tensor) -> tuple[list[int], list[int]]:
    """Frames that were seen before, and where they are in the window."""
    own = [place for place, frame in enumerate(frames) if count[frame] > 0]
    if not own:
        raise ValueError(f"The window of frames {frames[0]}-{frames[-1]} shares no frame with those before it.")
    return [frames[place] for place in own], own
