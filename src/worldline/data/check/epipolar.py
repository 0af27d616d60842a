"""Do the images move as cameras and points say? Optical flow against points, or epipolar lines where there are none."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldline.flow.dis import DisFlow
from worldline.geometry import camera, pose
from worldline.scene import Scene4D

ROUND_TRIP_PX = 0.5
"""Flow forth and back must return this near, or the pixel is not used."""

NEAR_PX = 2.0
"""Distance from the epipolar line that passes: poses measured by GPS and inertia shake by a pixel per frame."""

LEAST_TEXTURE = 2.0
"""Grey levels per pixel of gradient that a pixel needs to be tracked."""


def grey(frame: Tensor) -> np.ndarray:
    """A frame [H, W, 3] as uint8 grey."""
    rgb = frame.float() if frame.dtype == torch.uint8 else frame.float() * 255
    return (rgb @ torch.tensor([0.299, 0.587, 0.114])).round().clamp(0, 255).to(torch.uint8).numpy()


def matches(first: np.ndarray, second: np.ndarray) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N 2"]]:
    """Pixels of the first image and where flow finds them in the second: textured, and back again after both flows."""
    flow = DisFlow()
    forth, back = flow(first, second), flow(second, first)
    size = (first.shape[0], first.shape[1])
    grid = camera.pixel_grid(size)
    there = grid + torch.from_numpy(forth)
    column, row = there.round().long().unbind(-1)
    inside = (column >= 0) & (row >= 0) & (column < size[1]) & (row < size[0])
    returned = torch.from_numpy(back)[row.clamp(0, size[0] - 1), column.clamp(0, size[1] - 1)]
    slope_v, slope_u = np.gradient(first.astype(np.float32))
    good = inside & (torch.from_numpy(np.hypot(slope_u, slope_v)) > LEAST_TEXTURE)
    good &= (torch.from_numpy(forth) + returned).norm(dim=-1) < ROUND_TRIP_PX
    return grid[good], there[good]


def distance_px(
    a: Float[Tensor, "N 2"],
    b: Float[Tensor, "N 2"],
    intrinsics: Float[Tensor, "2 3 3"],
    first_to_second: Float[Tensor, "4 4"],
) -> Float[Tensor, " N"]:
    """Sampson distance of matches from the epipolar geometry of two cameras, in pixels (Hartley, Zisserman, 11.4.3).

    Without translation: the distance from where the rotation alone takes the pixel.
    """
    a1, b1 = (torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], -1) for x in (a, b))
    k_a, k_b = intrinsics.double()
    rotation, t = first_to_second[:3, :3].double(), first_to_second[:3, 3].double()
    if float(t.norm()) < 1e-9:
        moved = a1 @ (k_b @ rotation @ torch.linalg.inv(k_a)).T
        return (moved[:, :2] / moved[:, 2:] - b1[:, :2]).norm(dim=-1)
    fundamental = torch.linalg.inv(k_b).T @ pose.hat(t / t.norm()) @ rotation @ torch.linalg.inv(k_a)
    line_b, line_a = a1 @ fundamental.T, b1 @ fundamental
    residual = (b1 * line_b).sum(-1)
    slope = line_b[:, :2].square().sum(-1) + line_a[:, :2].square().sum(-1)
    return residual.abs() / slope.sqrt().clamp(min=1e-12)


def image_motion(scene: Scene4D) -> tuple[float, float, int]:
    """Two frames: share of matches within NEAR_PX of the cameras' epipolar geometry, that share for the inverse motion,
    and the number of matches.
    """
    assert scene.cameras is not None and len(scene) == 2
    a, b = matches(grey(scene.video.frames[0]), grey(scene.video.frames[1]))
    poses = scene.cameras.cam2world.double()
    forward = pose.inverse(poses[1]) @ poses[0]
    shares = [
        float((distance_px(a, b, scene.cameras.intrinsics, motion) < NEAR_PX).double().mean())
        if len(a)
        else float("nan")
        for motion in (forward, pose.inverse(forward))
    ]
    return shares[0], shares[1], len(a)


def point_motion(scene: Scene4D) -> tuple[Tensor, Tensor]:
    """Two frames: do points, with their flow where it is known, move over the image as the image moves?

    This sees what depth cannot: flow that contains the camera's motion slides along walls without leaving them.

    Returns:
        Pixels [N, 2] of the first frame that are textured and have a point, and for each whether that point, moved and
        projected into the second frame, is within NEAR_PX or a tenth of its motion of where optical flow finds it.
    """
    assert scene.cameras is not None and len(scene) == 2
    a, b = matches(grey(scene.video.frames[0]), grey(scene.video.frames[1]))
    column, row = a.long().unbind(-1)
    points, known = scene.points[0], scene.valid[0]
    if scene.scene_flow is not None and scene.flow_valid is not None:
        points, known = points + scene.scene_flow[0], known & scene.flow_valid[0]
    chosen = known[row, column]
    a, b = a[chosen], b[chosen].double()
    world = points[row[chosen], column[chosen]].double()
    local = pose.transform(pose.inverse(scene.cameras.cam2world[1].double()), world)
    uv = camera.project(local, scene.cameras.intrinsics[1].double())
    near = (uv - b).norm(dim=-1) <= torch.clamp(0.1 * (b - a).norm(dim=-1), min=NEAR_PX)
    return a, near & (local[:, 2] > 0)
