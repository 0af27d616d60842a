"""A scene or a video at another size, without making up points."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from worldline.geometry import camera, pointmap
from worldline.scene import Scene4D, Video


def resize_video(video: Video, size: tuple[int, int]) -> Video:
    """The video at (H, W), antialiased; float in [0, 1] unless nothing changes."""
    if video.size == size:
        return video
    planes = video.rgb().permute(0, 3, 1, 2)
    resized = functional.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
    return replace(video, frames=resized.clamp(0, 1).permute(0, 2, 3, 1))


def resize_scene(scene: Scene4D, size: tuple[int, int]) -> Scene4D:
    """The scene at (H, W): every point, flow vector and confidence is one that was there; extras are dropped."""
    if scene.size == size:
        return scene
    points, valid = pointmap.resize(scene.points, scene.valid, size)
    flow = flow_valid = None
    if scene.scene_flow is not None and scene.flow_valid is not None:
        flow, flow_valid = pointmap.resize(scene.scene_flow, scene.flow_valid, size)
    cameras = scene.cameras
    if cameras is not None:
        cameras = replace(cameras, intrinsics=camera.resize(cameras.intrinsics, scene.size, size), size=size)
    return replace(
        scene,
        video=resize_video(scene.video, size),
        points=points,
        valid=valid,
        cameras=cameras,
        scene_flow=flow,
        flow_valid=flow_valid,
        confidence=None if scene.confidence is None else _nearest(scene.confidence, size),
        extras={},
    )


def _nearest(values: Float[Tensor, "T H W"], size: tuple[int, int]) -> Tensor:
    return functional.interpolate(values[:, None], size, mode="nearest-exact")[:, 0]


def blank_video(count: int, size: tuple[int, int], times: Float[Tensor, " T"] | None = None) -> Video:
    """Black frames, for outputs of other tools that come without pictures."""
    stamps = torch.arange(count, dtype=torch.float64) if times is None else times.double()
    return Video(frames=torch.zeros(count, *size, 3, dtype=torch.uint8), timestamps=stamps)
