"""Trivial predictors: what a number is worth is only seen beside somebody who has not looked at the video.

All of them say: no motion, and a camera that stands still (the last one: a plane, and a camera that goes forward at
constant speed). They differ in depth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from worldline.geometry import camera, pointmap
from worldline.scene import Cameras, Provenance, Scene4D, Video

FOCAL_WIDTHS = 0.9
"""Focal length of all trivial predictors, in image widths (58 degrees across)."""

SPEED = 0.02
"""Step of the constant-velocity camera, in units of the plane's depth per frame."""


def plane(size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """Depth 1 everywhere."""
    return torch.ones(size)


def ramp(size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """Disparity that grows linearly from 0.2 in the top row to 1 in the bottom row: a floor under a far wall."""
    return (1 / torch.linspace(0.2, 1.0, size[0]))[:, None].expand(size).clone()


@cache
def _mean_log_depth() -> Tensor:
    text = resources.files("worldline.evaluation").joinpath("mean_map.json").read_text()
    return torch.tensor(json.loads(text)["log_depth"])


def mean_map(size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """Mean log depth of synthetic training clips, resized (benchmarks/fit_mean_map.py made it)."""
    resized = functional.interpolate(_mean_log_depth()[None, None], size, mode="bilinear", align_corners=False)
    return resized[0, 0].exp()


def still_scene(video: Video, depth: Float[Tensor, "H W"], name: str, speed: float = 0.0) -> Scene4D:
    """The same depth in every frame, no motion, and a camera that goes forward by `speed` per frame."""
    count, size = len(video), video.size
    intrinsics = camera.intrinsics_from_focal(FOCAL_WIDTHS * size[1], size).repeat(count, 1, 1)
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 2, 3] = speed * torch.arange(count)
    points = pointmap.to_world(pointmap.from_depth(depth.repeat(count, 1, 1), intrinsics), poses)
    everywhere = torch.ones(count, *size, dtype=torch.bool)
    flow_valid = everywhere.clone()
    flow_valid[-1] = False
    return Scene4D(
        video=video,
        points=points,
        valid=everywhere,
        cameras=Cameras(intrinsics=intrinsics, cam2world=poses, size=size),
        scene_flow=torch.zeros_like(points),
        flow_valid=flow_valid,
        provenance=Provenance(system=name),
    )


TRIVIAL: Mapping[str, Callable[[Video, int], Scene4D]] = MappingProxyType(
    {
        "trivial: plane": lambda video, seed: still_scene(video, plane(video.size), "plane"),
        "trivial: y-ramp": lambda video, seed: still_scene(video, ramp(video.size), "y-ramp"),
        "trivial: mean map": lambda video, seed: still_scene(video, mean_map(video.size), "mean map"),
        "trivial: constant velocity": lambda video, seed: still_scene(video, plane(video.size), "plane", SPEED),
    }
)
"""(video, seed) -> scene, by the name that tables show; all with zero scene flow."""
