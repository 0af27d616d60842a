"""Moving points seen along a camera path, and which of them a camera sees (spec 4.2, 4.3).

Coverage is counted, not guessed from colour: a black pixel that a point fell on is no hole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry.camera import intrinsics_from_focal, project
from worldline.geometry.pointmap import depth_edges, depth_of
from worldline.geometry.pose import inverse, transform
from worldline.render.splat import splat
from worldline.scene import Progress, Scene4D, Tracks4D, no_progress

EDGE = 0.2
"""Pixels next to a depth step of more than this fraction are flying pixels and are left out."""

STEEP = 0.06
"""Slopes up to this fraction of the depth per pixel come back unchanged at the input view; guessed depth is steep."""

BEHIND = 0.02
"""A point this fraction behind what the camera sees there still counts as seen."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What cameras see of moving points.

    Attributes:
        frames: [T, H, W, 3] colours in [0, 1], 0 where nothing is.
        depth: [T, H, W] z-depth, 0 where nothing is.
        coverage: [T, H, W] whether any point is seen.
    """

    frames: Float[Tensor, "T H W 3"]
    depth: Float[Tensor, "T H W"]
    coverage: Bool[Tensor, "T H W"]


def input_pose(source: Tracks4D | Scene4D) -> Float[Tensor, "4 4"]:
    """Pose of the input camera: that of the reference frame; the identity where there are no cameras."""
    if source.cameras is None:
        return torch.eye(4, dtype=torch.float64)
    return source.cameras.cam2world[source.reference if isinstance(source, Tracks4D) else 0]


def input_intrinsics(source: Tracks4D | Scene4D) -> Float[Tensor, "3 3"]:
    """Intrinsics of the input camera; without cameras, of one with a focal length of the image width."""
    size = size_of(source)
    if source.cameras is None:
        return intrinsics_from_focal(torch.tensor(float(size[1])), size)
    return source.cameras.intrinsics[source.reference if isinstance(source, Tracks4D) else 0]


def size_of(source: Tracks4D | Scene4D) -> tuple[int, int]:
    """(H, W) of the maps."""
    return source.points.shape[1], source.points.shape[2]


def points_at(source: Tracks4D | Scene4D, time: int | float) -> Float[Tensor, "H W 3"]:
    """Points of a time; between two times, tracks go straight from one to the next.

    Raises:
        ValueError: a time between the frames of a scene, whose pixels are not the same points.
    """
    before = math.floor(time)
    if time == before:
        return source.points[before]
    if not isinstance(source, Tracks4D):
        raise ValueError(f"A scene has points at its own frames only, not at {time:g}; round it.")
    return source.points[before].lerp(source.points[before + 1], time - before)


def solid(source: Tracks4D | Scene4D, time: int | float, edge: float = EDGE) -> Bool[Tensor, "H W"]:
    """Pixels whose points may be shown at a time: valid, finite and not between two surfaces."""
    if isinstance(source, Tracks4D):
        seen, pose = source.points[source.reference], input_pose(source)
        known = points_at(source, time).isfinite().all(-1) & seen.isfinite().all(-1)
    else:
        time = int(time)
        seen, known = source.points[time], source.valid[time]
        pose = input_pose(source) if source.cameras is None else source.cameras.cam2world[time]
    depth = depth_of(seen, pose.to(seen))
    return known & ~depth_edges(torch.where(known, depth, torch.zeros_like(depth)), edge)


def colors_of(source: Tracks4D | Scene4D, time: int | float) -> Float[Tensor, "H W 3"]:
    """Colours in [0, 1] of the points of a time: constant for tracks."""
    return source.colors if isinstance(source, Tracks4D) else source.video.select([int(time)]).rgb()[0]


def render(
    source: Tracks4D | Scene4D,
    path: Float[Tensor, "T 4 4"],
    times: Sequence[int | float],
    *,
    intrinsics: Float[Tensor, "3 3"] | None = None,
    size: tuple[int, int] | None = None,
    radius_px: int = 1,
    edge: float = EDGE,
    progress: Progress = no_progress,
) -> Rendering:
    """Splat the points of each time into the camera of the path at that place.

    Args:
        source: tracks or a scene, in one world.
        path: cam2world.
        times: which time of the source each pose shows; between two of them for tracks, see `points_at`.
        intrinsics: of the cameras for `size`; None: the input camera's.
        size: (H, W); None: the source's.
        radius_px: of a point's disc; 1 leaves no pin-holes up to a zoom of about three.
        edge: flying pixels, see `EDGE`.
        progress: told poses done.

    Raises:
        ValueError: poses and times differ in number, or a time is not in the source.
    """
    if len(path) != len(times):
        raise ValueError(f"{len(path)} poses need as many times, got {len(times)}.")
    if not all(0 <= time <= len(source) - 1 for time in times):
        raise ValueError(f"Times must be from 0 to {len(source) - 1}, got {min(times)} to {max(times)}.")
    camera = input_intrinsics(source) if intrinsics is None else intrinsics
    parts = []
    for done, (pose, time) in enumerate(zip(path, times, strict=True)):
        shown = solid(source, time, edge)
        points, colors = points_at(source, time)[shown].float(), colors_of(source, time)[shown]
        where = pose.to(points), camera.to(points), size or size_of(source)
        parts.append(splat(points, colors, *where, radius_px, push=STEEP))
        progress("render", done + 1, len(path))
    return Rendering(
        frames=torch.stack([part.image for part in parts]),
        depth=torch.stack([part.depth for part in parts]),
        coverage=torch.stack([part.coverage for part in parts]),
    )


def seen_by(
    points: Float[Tensor, "T H W 3"], cam2world: Float[Tensor, "T 4 4"], intrinsics: Float[Tensor, "3 3"]
) -> Bool[Tensor, "T H W"]:
    """Whether the camera of each time sees each point: inside the picture, and not behind another one."""
    size, out = (points.shape[1], points.shape[2]), []
    for pose, frame in zip(cam2world.to(points), points, strict=True):
        flat = frame.flatten(0, 1)
        seen = splat(flat, flat[:, :1], pose, intrinsics.to(points), size, radius_px=1)
        cam = transform(inverse(pose), flat)
        pixel = (project(cam, intrinsics.to(points)) + 0.5).floor()
        inside = (cam[:, 2] > 0) & (pixel >= 0).all(-1) & (pixel[:, 0] < size[1]) & (pixel[:, 1] < size[0])
        x, y = pixel.nan_to_num(0).long().unbind(-1)
        front = seen.depth[y.clamp(0, size[0] - 1), x.clamp(0, size[1] - 1)]
        out.append((inside & (cam[:, 2] <= (1 + BEHIND) * front)).unflatten(0, size))
    return torch.stack(out)
