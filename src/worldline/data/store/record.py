"""A clip as named arrays, and back.

    rgb           uint8    [T, H, W, 3]
    depth         float32  [T, H, W]      z in the frame's camera, where the cameras give the points back to 1e-6 of
    points        float32  [T, H, W, 3]     their distance (a third of the bytes); else the points themselves
    valid         bool     [T, H, W]
    scene_flow    float32  [T, H, W, 3], flow_valid bool [T, H, W]
    confidence    float32  [T, H, W]
    extras/NAME   as they are
    tracks/points float32  [T, N, 3], tracks/known and tracks/visible bool [T, N]
    intrinsics    float64  [T, 3, 3], cam2world float64 [T, 4, 4], timestamps float64 [T]

The last line is one chunk per array, all others have one chunk per frame. Points and flow are zero where not valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data.clips import Clip, PointTracks
from worldline.geometry import camera, pose
from worldline.scene import Cameras, Provenance, Scene4D, Video

WHOLE = ("intrinsics", "cam2world", "timestamps")
"""Arrays that are one chunk."""

DEPTH_TOLERANCE = 1e-6
"""Largest error of a point that is stored as depth, as a fraction of its distance from the camera or the world."""

Arrays = Mapping[str, np.ndarray]


def arrays_of(clip: Clip) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays that hold a clip, by name.

    Raises:
        ValueError: the clip has no frames, or values that are not finite where they are said to be valid.
    """
    scene = clip.scene
    if not len(scene):
        raise ValueError("A clip without frames cannot be stored.")
    valid = scene.valid.cpu()
    yield "rgb", _rgb8(scene.video.frames)
    yield from _geometry(scene, valid)
    yield "valid", _bytes(valid)
    if scene.scene_flow is not None and scene.flow_valid is not None:
        yield "scene_flow", _masked(scene.scene_flow, scene.flow_valid, "scene flow")
        yield "flow_valid", _bytes(scene.flow_valid)
    if scene.confidence is not None:
        yield "confidence", scene.confidence.detach().cpu().float().numpy()
    for name, values in scene.extras.items():
        yield f"extras/{name}", (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()
    if clip.tracks is not None:
        yield "tracks/points", _masked(clip.tracks.points, clip.tracks.known, "tracks")
        yield "tracks/known", _bytes(clip.tracks.known)
        yield "tracks/visible", _bytes(clip.tracks.visible)
    if scene.cameras is not None:
        yield "intrinsics", scene.cameras.intrinsics.detach().cpu().double().numpy()
        yield "cam2world", scene.cameras.cam2world.detach().cpu().double().numpy()
    yield "timestamps", scene.video.timestamps.detach().cpu().double().numpy()


def _bytes(mask: Tensor) -> np.ndarray:
    return mask.detach().cpu().bool().numpy()


def _rgb8(frames: Tensor) -> np.ndarray:
    frames = frames.detach().cpu()
    return (frames if frames.dtype == torch.uint8 else (frames.clamp(0, 1) * 255).round().to(torch.uint8)).numpy()


def _masked(values: Tensor, known: Tensor, name: str) -> np.ndarray:
    """Values as float32, zero where they are not known."""
    values, known = values.detach().cpu().float(), known.detach().cpu()
    if not bool(values[known].isfinite().all()):
        raise ValueError(f"The {name} of a clip is not finite where it is said to be valid.")
    return torch.where(known[..., None], values, torch.zeros_like(values)).numpy()


def _geometry(scene: Scene4D, valid: Tensor) -> Iterator[tuple[str, np.ndarray]]:
    if not bool(valid.any()):
        return  # nothing is known: a scene of cameras alone
    points = _masked(scene.points, valid, "point map")
    depth = None if scene.cameras is None else _exact_depth(points, valid.numpy(), scene.cameras)
    yield ("points", points) if depth is None else ("depth", depth)


def _exact_depth(points: np.ndarray, valid: np.ndarray, cameras: Cameras) -> np.ndarray | None:
    """Depth that gives the points back, None where a camera cannot (points off their pixels, or behind it)."""
    size = points.shape[1:3]
    depth = np.zeros(points.shape[:3], np.float32)
    for t, (k, matrix) in enumerate(zip(cameras.intrinsics.cpu(), cameras.cam2world.cpu(), strict=True)):
        there = valid[t]
        world = points[t][there].astype(np.float64)
        rotation, centre = matrix[:3, :3].double().numpy(), matrix[:3, 3].double().numpy()
        depth[t][there] = (world - centre) @ rotation[:, 2]
        if (depth[t][there] <= 0).any():
            return None
        back = unproject(depth[t], k, matrix, size)[there]
        distance = np.maximum(np.abs(world).max(-1, initial=0), depth[t][there])
        if (np.abs(back - world) > DEPTH_TOLERANCE * distance[:, None]).any():
            return None
    return depth


def unproject(
    depth: np.ndarray, intrinsics: Tensor, cam2world: Tensor, size: tuple[int, ...], pixels: np.ndarray | None = None
) -> np.ndarray:
    """World points [..., 3] float32 of the z-depth of one frame; 0 where the depth is not positive.

    Args:
        depth: [H, W], or [...] of the chosen pixels.
        intrinsics: [3, 3].
        cam2world: [4, 4].
        size: (H, W) of the frame.
        pixels: [...] row-major indices of the pixels that the depth is of; None for all.
    """
    if pixels is None:
        uv = camera.pixel_grid((size[0], size[1]), torch.float64).numpy()
    else:
        uv = np.stack([pixels % size[1], pixels // size[1]], -1).astype(np.float64)
    inverse = np.linalg.inv(intrinsics.double().numpy())
    turned = cam2world[:3, :3].double().numpy() @ inverse  # world direction of a pixel with z = 1
    rays = (uv @ turned[:, :2].T + turned[:, 2]).astype(np.float32)
    points = rays * depth[..., None] + cam2world[:3, 3].double().numpy().astype(np.float32)
    points[depth <= 0] = 0
    return points


def clip_of(arrays: Arrays, metadata: Mapping[str, Any], frames: list[int]) -> Clip:
    """The clip of some frames, from their arrays; those that were not read are absent, points then nowhere valid.

    Args:
        arrays: per-frame arrays of the chosen frames, whole arrays of all frames.
        metadata: "size", "scale", "provenance".
        frames: which frames of the clip were read.
    """
    size = (int(metadata["size"][0]), int(metadata["size"][1]))
    count = len(frames)
    cameras = None
    if "cam2world" in arrays:
        k, matrix = (torch.from_numpy(arrays[name][frames]) for name in ("intrinsics", "cam2world"))
        cameras = Cameras(intrinsics=k, cam2world=matrix, size=size)
    black = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, *size, 3)
    rgb = torch.from_numpy(arrays["rgb"]) if "rgb" in arrays else black
    points, valid = _points(arrays, cameras, count, size)
    flow = arrays.get("scene_flow")
    tracks = None
    if "tracks/points" in arrays:
        parts = (torch.from_numpy(arrays[f"tracks/{name}"]) for name in ("points", "known", "visible"))
        tracks = PointTracks(**dict(zip(("points", "known", "visible"), parts, strict=True)))
    extras = {name.removeprefix("extras/"): values for name, values in arrays.items() if name.startswith("extras/")}
    scene = Scene4D(
        video=Video(frames=rgb, timestamps=torch.from_numpy(arrays["timestamps"][frames])),
        points=points,
        valid=valid,
        cameras=cameras,
        scene_flow=None if flow is None else torch.from_numpy(flow),
        flow_valid=None if flow is None else torch.from_numpy(arrays["flow_valid"]),
        confidence=torch.from_numpy(arrays["confidence"]) if "confidence" in arrays else None,
        scale=metadata["scale"],
        provenance=_provenance(metadata["provenance"]),
        extras={name: torch.from_numpy(values) for name, values in extras.items()},
    )
    return Clip(scene=scene, tracks=tracks)


def _points(arrays: Arrays, cameras: Cameras | None, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    if "depth" in arrays and cameras is not None:
        frames = zip(arrays["depth"], cameras.intrinsics, cameras.cam2world, strict=True)
        points = torch.from_numpy(np.stack([unproject(depth, k, matrix, size) for depth, k, matrix in frames]))
        return points, torch.from_numpy(arrays["valid"])
    if "points" in arrays:
        return torch.from_numpy(arrays["points"]), torch.from_numpy(arrays["valid"])
    nowhere = torch.zeros(1, 1, 1, dtype=torch.bool).expand(count, *size)
    return torch.zeros(1, 1, 1, 1).expand(count, *size, 3), nowhere


def _provenance(entry: Mapping[str, Any]) -> Provenance:
    return Provenance(**{**entry, "unreliable": tuple(entry["unreliable"])})


def median_intrinsics(cameras: Cameras | None) -> tuple[float, float, float, float] | None:
    """(fx, fy, cx, cy) in pixels, the median over the frames."""
    if cameras is None:
        return None
    k: Float[Tensor, "T 3 3"] = cameras.intrinsics.double().cpu()
    fx, fy, cx, cy = (float(k[:, row, column].median()) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return fx, fy, cx, cy


def flags_of(clip: Clip) -> frozenset[str]:
    """What a clip has and is: metric, cameras, points, flow, tracks, dense_tracks, moving_camera, static, synthetic.

    "static" and "synthetic" only if the adapter says so.
    """
    scene, settings = clip.scene, clip.scene.provenance.settings
    moved = False
    if scene.cameras is not None:
        relative = pose.relative_to_first(scene.cameras.cam2world.double())
        moved = bool((relative - torch.eye(4, dtype=torch.float64)).abs().max() > 1e-6)
    known = {
        "metric": scene.scale == "metric",
        "cameras": scene.cameras is not None,
        "points": bool(scene.valid.any()),
        "flow": scene.flow_valid is not None and bool(scene.flow_valid.any()),
        "tracks": clip.tracks is not None,
        "dense_tracks": "tracks" in scene.extras,
        "moving_camera": moved,
        "static": settings.get("static") is True,
        "synthetic": settings.get("synthetic") is True,
    }
    return frozenset(name for name, is_so in known.items() if is_so)
