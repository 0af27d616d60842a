"""From what data sets store (images, depth, poses, flow) to a Scene4D: the part all adapters share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldline.geometry import pointmap, pose
from worldline.scene import Cameras, Provenance, Scale, Scene4D, Video


def scene_from_depth(
    *,
    dataset: str,
    sequence: str,
    images: list[UInt8[Tensor, "H W 3"]] | UInt8[Tensor, "T H W 3"],
    depth: Float[Tensor, "T H W"] | None,
    intrinsics: Float[Tensor, "3 3"] | Float[Tensor, "T 3 3"],
    cam2world: Float[Tensor, "T 4 4"],
    timestamps: Float[Tensor, " T"],
    scene_flow: Float[Tensor, "T H W 3"] | None = None,
    flow_valid: Bool[Tensor, "T H W"] | None = None,
    extras: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
    scale: Scale = "metric",
) -> Scene4D:
    """A ground-truth scene in the frame of its first camera.

    Args:
        dataset: name of the data set.
        sequence: name of the sequence in it.
        images: one per frame.
        depth: z-depth in metres, not positive or not finite where unknown; None: nothing is known.
        intrinsics: one for all frames or one per frame, pixels, centres at integer coordinates.
        cam2world: OpenCV axes, any world; made relative to the first.
        timestamps: seconds.
        scene_flow: displacements in the frame of the FIRST camera.
        flow_valid: where they are known.
        extras: further per-pixel truth.
        settings: further facts for the provenance.
        scale: "relative" for data sets whose unit is not the metre.
    """
    frames = images if isinstance(images, Tensor) else torch.stack(images)
    size = (frames.shape[1], frames.shape[2])
    k = intrinsics.double().expand(len(frames), 3, 3).clone()
    poses = pose.relative_to_first(orthonormal(cam2world.double()))
    if depth is None:  # one zero seen everywhere: no memory for what is not known
        points = torch.zeros(1, 1, 1, 1).expand(*frames.shape[:3], 3)
        valid = torch.zeros(1, 1, 1, dtype=torch.bool).expand(frames.shape[:3])
    else:
        valid = (depth > 0) & depth.isfinite()
        local = pointmap.from_depth(torch.where(valid, depth, torch.zeros_like(depth)), k)
        points = pointmap.to_world(local, poses) * valid[..., None]
    return Scene4D(
        video=Video(frames=frames, timestamps=timestamps.double()),
        points=points,
        valid=valid,
        cameras=Cameras(intrinsics=k, cam2world=poses, size=size),
        scene_flow=scene_flow,
        flow_valid=flow_valid,
        scale=scale,
        provenance=Provenance(
            system="truth", source=f"{dataset}/{sequence}", settings={"dataset": dataset, **(settings or {})}
        ),
        extras=dict(extras or {}),
    )


def world_flow(
    depth: Float[Tensor, "T H W"],
    intrinsics: Float[Tensor, "T 3 3"],
    cam2world: Float[Tensor, "T 4 4"],
    ahead: Callable[[int, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Float[Tensor, "T H W 3"], Bool[Tensor, "T H W"]]:
    """World scene flow of pixels whose next position is known in the next camera; frame by frame, in float64.

    Args:
        depth: z-depth, not positive where unknown.
        intrinsics: pixels.
        cam2world: relative to the first camera.
        ahead: (t, points [H, W, 3] of frame t in its camera) -> (where they are at t + 1, in the axes of the next
            camera; [H, W] where that is known). It may read its files.

    Returns:
        (flow in the frame of the first camera, where it is known); float32, zero and False in the last frame.
    """
    flow, valid = torch.zeros(*depth.shape, 3), torch.zeros(depth.shape, dtype=torch.bool)
    poses = cam2world.double()
    for t in range(len(depth) - 1):
        local = pointmap.from_depth(depth[t].double(), intrinsics[t].double())
        there, known = ahead(t, local)
        moved = pose.transform(poses[t + 1], there.double()) - pose.transform(poses[t], local)
        valid[t] = known & (depth[t] > 0) & moved.isfinite().all(-1)
        flow[t] = torch.where(valid[t, ..., None], moved, torch.zeros_like(moved)).float()
    return flow, valid


def orthonormal(cam2world: Float[Tensor, "T 4 4"]) -> Float[Tensor, "T 4 4"]:
    """Poses with the nearest true rotations: text files round theirs to five or six digits.

    Raises:
        ValueError: a matrix is further than rounding from a rotation.
    """
    u, singular, vt = torch.linalg.svd(cam2world[:, :3, :3])
    rotation = u @ vt
    if float((singular - 1).abs().max()) > 1e-2 or float(torch.linalg.det(rotation).min()) < 0:
        raise ValueError("A camera pose is not a rotation and a translation; check the order of its numbers.")
    return pose.from_rt(rotation, cam2world[:, :3, 3])


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Float[Tensor, "3 3"]:
    """Intrinsics in float64."""
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)


def even_times(count: int, fps: float) -> Float[Tensor, " T"]:
    """Times of frames at a constant rate, from 0."""
    return torch.arange(count, dtype=torch.float64) / fps
