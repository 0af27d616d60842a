"""Scene flow: the world displacement of the surface point seen at a pixel, from frame t to t + 1."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry import camera, pointmap, pose
from worldline.scene import Scene4D


def deformed(points: Float[Tensor, "*any 3"], flow: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
    """Where the points are one frame later: points + flow."""
    return points + flow


def camera_to_world_flow(
    points_cam: Float[Tensor, "*any 3"],
    flow_cam: Float[Tensor, "*any 3"],
    cam2world_t: Float[Tensor, "*batch 4 4"],
    cam2world_next: Float[Tensor, "*batch 4 4"],
) -> Float[Tensor, "*any 3"]:
    """World flow from flow between camera frames, x'(camera t+1) - x(camera t), which includes ego-motion."""
    return pose.transform(cam2world_next, points_cam + flow_cam) - pose.transform(cam2world_t, points_cam)


def world_to_camera_flow(
    points_world: Float[Tensor, "*any 3"],
    flow_world: Float[Tensor, "*any 3"],
    cam2world_t: Float[Tensor, "*batch 4 4"],
    cam2world_next: Float[Tensor, "*batch 4 4"],
) -> Float[Tensor, "*any 3"]:
    """The inverse of camera_to_world_flow: x'(camera t+1) - x(camera t) of the points."""
    ahead = pose.transform(pose.inverse(cam2world_next), points_world + flow_world)
    return ahead - pose.transform(pose.inverse(cam2world_t), points_world)


def from_optical_flow(
    points_world_t: Float[Tensor, "*batch H W 3"],
    points_world_next: Float[Tensor, "*batch H W 3"],
    flow_px: Float[Tensor, "*batch H W 2"],
    valid_t: Bool[Tensor, "*batch H W"] | None = None,
    valid_next: Bool[Tensor, "*batch H W"] | None = None,
) -> tuple[Float[Tensor, "*batch H W 3"], Bool[Tensor, "*batch H W"]]:
    """Scene flow of pixels whose optical flow is known: points_next(u + flow) - points_t(u), and where it is defined.

    The next point map is read by pointmap.sample, so a pixel beside an edge never gets a point between two surfaces.
    Optical flow does not say what is hidden in the next frame: give `valid_t` False where it is.
    """
    size = (points_world_t.shape[-3], points_world_t.shape[-2])
    grid = camera.pixel_grid(size, flow_px.dtype, flow_px.device)
    known = flow_px.isfinite().all(-1)
    uv = grid + torch.where(known[..., None], flow_px, torch.zeros_like(flow_px))
    everywhere = torch.ones_like(known)
    ahead, seen = pointmap.sample(points_world_next, everywhere if valid_next is None else valid_next, uv)
    valid = known & seen & (everywhere if valid_t is None else valid_t)
    return torch.where(valid[..., None], ahead - points_world_t, torch.zeros_like(points_world_t)), valid


def to_optical_flow(
    points_world: Float[Tensor, "*batch H W 3"],
    scene_flow: Float[Tensor, "*batch H W 3"],
    intrinsics_next: Float[Tensor, "*batch 3 3"],
    cam2world_next: Float[Tensor, "*batch 4 4"],
) -> Float[Tensor, "*batch H W 2"]:
    """Optical flow in pixels: projection of the deformed points into the next camera, minus the pixel."""
    ahead = pointmap.to_camera(points_world + scene_flow, cam2world_next)
    uv = camera.project(ahead, intrinsics_next)
    return uv - camera.pixel_grid((uv.shape[-3], uv.shape[-2]), uv.dtype, uv.device)


def compose(
    points: Float[Tensor, "T H W 3"],
    scene_flow: Float[Tensor, "T H W 3"],
    flow_valid: Bool[Tensor, "T H W"],
    intrinsics: Float[Tensor, "T 3 3"],
    cam2world: Float[Tensor, "T 4 4"],
    stride: int,
    rtol: float = 0.05,
) -> tuple[Float[Tensor, "T H W 3"], Bool[Tensor, "T H W"]]:
    """Scene flow over `stride` frames from flow over one: follow every point from camera to camera.

    At each step the moved point is projected into the next camera and takes on the flow seen there, if the surface
    there is at its depth (within rtol); a point that is hidden, leaves the image or meets an invalid flow has no
    composed flow. The last `stride` frames are not valid.

    Raises:
        ValueError: the stride is below 1.
    """
    if stride < 1:
        raise ValueError(f"The stride must be 1 or more, got {stride}.")
    count = max(len(points) - stride, 0)
    total, valid = torch.zeros_like(scene_flow), torch.zeros_like(flow_valid)
    moved, good = points[:count] + scene_flow[:count], flow_valid[:count].clone()
    for step in range(1, stride):
        now = slice(step, step + count)
        local = pointmap.to_camera(moved, cam2world[now])
        uv = camera.project(local, intrinsics[now])
        z = local[..., 2]
        depth = pointmap.depth_of(points[now], cam2world[now])[..., None]
        carried, seen = pointmap.sample_values(
            points[now], flow_valid[now], torch.cat([scene_flow[now], depth], -1), uv
        )
        flow, surface = carried[..., :3], carried[..., 3]
        good &= seen & (z > 0) & ((surface - z).abs() <= rtol * z)
        moved = torch.where(good[..., None], moved + flow, moved)
    valid[:count] = good
    total[:count] = torch.where(good[..., None], moved - points[:count], total[:count])
    return total, valid


def dynamic_mask(scene: Scene4D, threshold: float = 0.005) -> Bool[Tensor, "T H W"]:
    """Pixels that move in the world by more than threshold times their depth between two frames.

    False where the flow is not valid, so in the last frame too. Without cameras the depth is the distance to the
    world's origin.

    Raises:
        ValueError: the scene has no scene flow.
    """
    if scene.scene_flow is None or scene.flow_valid is None:
        raise ValueError("The dynamic mask needs scene flow, and this scene has none: use a system that estimates it.")
    depth = scene.points.norm(dim=-1) if scene.cameras is None else pointmap.scene_depth(scene)
    return scene.flow_valid & (scene.scene_flow.norm(dim=-1) > threshold * depth)
