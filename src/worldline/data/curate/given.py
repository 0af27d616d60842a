"""Tracks that somebody else made: one .npz for each video, named as the video (a folder's videos: with their folder).

points_camera [T, H, W, 3]   camera coordinates of each time, OpenCV axes, of the pixels of a grid over the first frame
points_world  [T, H, W, 3]   or this: coordinates of one world, with cam2world
visible       [T, H, W]      bool
cam2world     [T, 4, 4]      with points_camera optional: found from the tracks, most of which must stand still
intrinsics    [3, 3]         optional, pixels of the grid: found from the first frame
pixels        [T, H, W, 2]   optional: where the points were seen, in pixels of the grid
metric        scalar bool    optional, default true
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.data.curate.tracked import Tracked, grid_in, resized
from worldline.geometry import camera, pointmap, pose
from worldline.geometry.fit import robust_similarity
from worldline.scene import Cameras, Provenance, Tracks4D, Video

SAMPLES = 4096
"""Points from which a camera's motion is found."""

STILL = 0.01
"""Displacement over depth below which a given point stands still."""


@dataclass(frozen=True, kw_only=True)
class GivenTracks:
    """A tracker that reads tracks from a folder."""

    folder: Path

    def identity(self, name: str) -> dict[str, Any]:
        """What decides the tracks of a clip: the file's content."""
        path = self._path(name)
        return {"given": hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None}

    def __call__(self, name: str, video: Video, size: tuple[int, int]) -> Tracked:
        """The tracks of a clip, on a grid of the size.

        Raises:
            ValueError: there are none, or they do not fit the clip.
        """
        path = self._path(name)
        if not path.is_file():
            raise ValueError(f"There are no tracks {path} for this video.")
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise ValueError(f"{path} is damaged or no .npz of plain arrays ({error}).") from error
        return from_arrays(arrays, str(path), video, size)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def from_arrays(arrays: Mapping[str, np.ndarray], where: str, video: Video, size: tuple[int, int]) -> Tracked:
    """Tracks of arrays as the module describes them, at the nearest pixels of a grid of the size.

    Raises:
        ValueError: something is missing or does not fit.
    """
    points, visible, in_camera = _checked(arrays, where, len(video))
    source = (points.shape[1], points.shape[2])
    valid = visible[0] & points[0].isfinite().all(-1) & (points[0, ..., 2] > 0)
    # 1. Cameras, and everything in the world of the first.
    share = 1.0
    if "cam2world" in arrays:
        cam2world = torch.from_numpy(arrays["cam2world"].astype(np.float64))
    else:
        cam2world, share = camera_motion(points, visible & valid)
    if in_camera:
        points = pointmap.to_world(points, cam2world.to(points))
    points = pose.transform(pose.inverse(cam2world[:1]).expand(len(points), 4, 4).to(points), points)
    cam2world = pose.relative_to_first(cam2world)
    # 2. The lens, and the first frame's points on its rays.
    k, off_px = _lens(arrays, points[0], valid)
    points = _on_rays(points, k, valid)
    # 3. The grid.
    near = grid_in(size, source).round().long()
    rows, columns = near[..., 1].clamp(0, source[0] - 1), near[..., 0].clamp(0, source[1] - 1)
    points, visible, valid = points[:, rows, columns], (visible & valid)[:, rows, columns], valid[rows, columns]
    moved = (points - points[:1]).norm(dim=-1).nan_to_num(nan=0.0).amax(0) > STILL * points[0, ..., 2].abs()
    pixels = None
    if "pixels" in arrays:
        scale = torch.tensor([size[1] / source[1], size[0] / source[0]])
        pixels = (torch.from_numpy(arrays["pixels"].astype(np.float32))[:, rows, columns] + 0.5) * scale - 0.5
    return Tracked(
        tracks=Tracks4D(
            points=points.float(),
            visible=visible,
            reference=0,
            colors=resized(video.frames[:1], size)[0],
            timestamps=video.timestamps,
            cameras=Cameras(
                intrinsics=camera.resize(k, source, size).expand(len(points), 3, 3), cam2world=cam2world, size=size
            ),
            scale="metric" if bool(arrays.get("metric", True)) else "relative",
            provenance=Provenance(system="given tracks"),
        ),
        valid=valid,
        moving=moved & valid,
        pixels=pixels,
        notes={"camera_inliers": round(share, 4), "lens_error_px": round(off_px, 3), "grid": list(source)},
    )


def _checked(arrays: Mapping[str, np.ndarray], where: str, frames: int) -> tuple[Tensor, Tensor, bool]:
    """Points [T, H, W, 3] float32, visibility, and whether the points are in camera coordinates."""
    names = [name for name in ("points_camera", "points_world") if name in arrays]
    if len(names) != 1 or "visible" not in arrays:
        raise ValueError(f"{where} must hold `visible` and either `points_camera` or `points_world`.")
    points, visible = (torch.from_numpy(np.asarray(arrays[name])) for name in (names[0], "visible"))
    if points.ndim != 4 or points.shape[-1] != 3 or points.shape[:3] != visible.shape:
        raise ValueError(f"{where}: {names[0]} must be [T, H, W, 3] and visible [T, H, W], not {list(points.shape)}.")
    if len(points) < frames:
        raise ValueError(f"{where} has tracks of {len(points)} frames, and the clip has {frames}.")
    if names[0] == "points_world" and "cam2world" not in arrays:
        raise ValueError(f"{where}: points_world needs cam2world.")
    for name in ("cam2world", "pixels"):
        if name in arrays and len(arrays[name]) < frames:
            raise ValueError(f"{where}: {name} has fewer than {frames} frames.")
    return points[:frames].float(), visible[:frames].bool(), names[0] == "points_camera"


def camera_motion(
    points: Float[Tensor, "T H W 3"], visible: Bool[Tensor, "T H W"]
) -> tuple[Float[Tensor, "T 4 4"], float]:
    """Cameras from tracks in camera coordinates: the rigid motion that most visible points follow.

    Returns:
        cam2world relative to the first, and the smallest share of points within 2 % of their depth of it.

    Raises:
        ValueError: at some time fewer than 16 points are visible.
    """
    poses, least = [torch.eye(4, dtype=torch.float64)], 1.0
    for t in range(1, len(points)):
        both = (visible[0] & visible[t] & points[t].isfinite().all(-1)).flatten().nonzero()[:, 0]
        if len(both) < 16:
            raise ValueError(f"At frame {t} only {len(both)} points are visible, too few to find the camera.")
        both = both[torch.linspace(0, len(both) - 1, min(SAMPLES, len(both))).long()]
        start, now = (p.reshape(-1, 3)[both].double() for p in (points[0], points[t]))
        found = robust_similarity(now, start, 1 / start[:, 2].clamp(min=1e-6), with_scale=False)
        poses.append(pose.from_rt(found.rotation, found.translation))
        near = (found.apply(now) - start).norm(dim=-1) < 0.02 * start[:, 2]
        least = min(least, float(near.double().mean()))
    return torch.stack(poses), least


def _lens(arrays: Mapping[str, np.ndarray], first: Tensor, valid: Tensor) -> tuple[Float[Tensor, "3 3"], float]:
    """Intrinsics, given or by least squares of u on x/z and v on y/z, and their median error in pixels."""
    uv = camera.pixel_grid((first.shape[0], first.shape[1]), torch.float64)[valid]
    slope = (first[..., :2] / first[..., 2:])[valid].double()
    if "intrinsics" in arrays:
        k = torch.from_numpy(np.asarray(arrays["intrinsics"], np.float64)).reshape(-1, 3, 3)[0]
    else:
        k = fit_lens(uv, slope)
    off = (slope * torch.stack([k[0, 0], k[1, 1]]) + k[:2, 2] - uv).norm(dim=-1)
    return k, float(off.median())


def fit_lens(uv: Float[Tensor, "N 2"], slope: Float[Tensor, "N 2"]) -> Float[Tensor, "3 3"]:
    """fx, fy, cx, cy by least squares (spec 1.3: the published tracks do not say theirs).

    Raises:
        ValueError: fewer than 16 points.
    """
    if len(uv) < 16:
        raise ValueError("The first frame has fewer than 16 points with depth, too few to find the lens.")
    du, ds = uv - uv.mean(0), slope - slope.mean(0)
    focal = (du * ds).sum(0) / (ds * ds).sum(0).clamp(min=1e-12)
    centre = uv.mean(0) - focal * slope.mean(0)
    k = torch.eye(3, dtype=torch.float64)
    k[0, 0], k[1, 1], k[0, 2], k[1, 2] = focal[0], focal[1], centre[0], centre[1]
    return k


def _on_rays(points: Tensor, k: Tensor, valid: Tensor) -> Tensor:
    """The same displacements from first points put on the rays of their pixels; zero where nothing is valid."""
    depth = torch.where(valid, points[0, ..., 2], torch.zeros_like(points[0, ..., 2]))
    start = pointmap.from_depth(depth, k.to(depth))
    return torch.where(valid[..., None], start + (points - points[:1]).nan_to_num(), torch.zeros_like(points))
