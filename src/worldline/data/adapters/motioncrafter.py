"""MotionCrafter's training clips: <clip>_rgb.mp4 beside <clip>_data.hdf5, listed in meta_infos.txt; read and written.

HDF5: point_map [T, H, W, 3] in camera axes, valid_mask, camera_pose [T, 4, 4], and maybe scene_flow [T, H, W, 3] =
X'(camera t+1) - X(camera t) with deform_mask, where it means something (data-formats.md 4.12; motioncrafter.md 4.1).
Published preprocessors left poses world-to-camera for some data sets, inverted the mask for Kubric, and wrote float16,
which costs 25 cm at 500 m. So the direction of the poses is decided by reprojection, the mask by which pixels move, and
what is written here has camera-to-world float64 poses, float32 points, and a mask that is false in the last frame.
Intrinsics are not stored: they are fitted to the points. The unit is that of the data set the clip came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, reprojection
from worldline.data.clips import DamagedFile, Sequence, reading
from worldline.geometry import camera, pose, sceneflow
from worldline.io.atomic import atomic_file
from worldline.io.video import load_video, write_video
from worldline.scene import Scene4D

RGB, DATA, LISTS = "_rgb.mp4", "_data.hdf5", ("meta_infos.txt", "filename_list.txt")
DOCUMENTED = (reprojection.DIRECTIONS[0], reprojection.OPENCV)
KNOWN, HIDDEN = "true where flow is known", "true where flow is hidden"
STILL = 1e-6


def sequences(root: Path) -> Iterator[Sequence]:
    """One per line of meta_infos.txt (or filename_list.txt), or per pair of files where there is no list."""
    containers.require_libraries("h5py")
    root = Path(root)
    listing = next((root / name for name in LISTS if (root / name).exists()), None)
    if listing is not None:
        pairs = [line.split()[:2] for line in listing.read_text().splitlines() if len(line.split()) >= 2]
        files = [(root / video, root / data) for video, data in pairs]
    else:
        found = sorted(root.rglob(f"*{DATA}"))
        files = [(path.with_name(path.name.removesuffix(DATA) + RGB), path) for path in found]
    if not files:
        raise FileNotFoundError(f"{root} has no {LISTS[0]} and no *{DATA}; give the root of MotionCrafter's clips.")
    for video, data in files:
        name = data.relative_to(root).as_posix().removesuffix(DATA)
        yield from decode.listed(name, _listed, video, data, name)


def _listed(video: Path, data: Path, name: str) -> Iterator[Sequence]:
    yield Sequence(name=name, frames=decode.one(_count, data), read=partial(_read, video, data, name))


def convert(root: Path) -> Iterator[Scene4D]:
    """Every clip, whole."""
    return clips.scenes(sequences(root))


def _count(path: Path) -> int:
    import h5py

    with h5py.File(encodings.require(path), "r") as file:
        return len(file["point_map"])


def _arrays(path: Path, start: int, stop: int) -> dict[str, Tensor]:
    """The frames start..stop of every array of a clip."""
    import h5py

    wanted = ("point_map", "valid_mask", "camera_pose", "scene_flow", "deform_mask", "visible_mask")
    with h5py.File(encodings.require(path), "r") as file:
        found = {key: torch.from_numpy(np.asarray(file[key][start:stop])) for key in wanted if key in file}
    for key in wanted[:3]:
        if key not in found:
            raise ValueError(f"it has no {key}")
    return found


def fitted_intrinsics(points: Tensor, valid: Tensor) -> Tensor:
    """Intrinsics by least squares of u on x / z and v on y / z; points [T, H, W, 3] in camera axes.

    Raises:
        ValueError: fewer than 8 points are valid.
    """
    grid = camera.pixel_grid((points.shape[1], points.shape[2]), torch.float64).expand(*points.shape[:3], 2)[valid]
    if len(grid) < 8:
        raise ValueError("fewer than 8 of its points are valid, too few to fit the intrinsics to")
    slope = points[valid].double()
    slope = slope[:, :2] / slope[:, 2:]
    ones = torch.ones(len(grid), dtype=torch.float64)
    lines = [
        torch.linalg.lstsq(torch.stack([slope[:, i], ones], -1), grid[:, i : i + 1]).solution[:, 0].tolist()
        for i in range(2)
    ]
    return assemble.pinhole(lines[0][0], lines[1][0], lines[0][1], lines[1][1])


def _mask(name: str, found: dict[str, Tensor], valid: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Where scene flow is known: the mask, unless nearly all that moves is outside of it."""
    if "deform_mask" not in found and "visible_mask" not in found:
        return valid.clone(), {}
    stored = found["deform_mask"].bool() if "deform_mask" in found else ~found["visible_mask"].bool()
    moves = (found["scene_flow"].float().norm(dim=-1) > STILL) & valid
    count = max(1, int(moves.sum()))
    scores = {KNOWN: (float((moves & stored).sum()) / count,), HIDDEN: (float((moves & ~stored).sum()) / count,)}
    verdict = reprojection.decide(f"flow mask of {name}", KNOWN, scores)
    mask = stored if verdict.chosen == KNOWN else ~stored
    return mask & valid, {"flow_mask_reading": verdict.record()}


def _read(video: Path, data: Path, name: str, start: int, stop: int) -> Scene4D:
    found = decode.one(_arrays, data, start, stop)
    frames = decode.one(partial(load_video, frames=slice(start, stop)), video).frames
    points = found["point_map"].float()
    if tuple(frames.shape[:3]) != tuple(points.shape[:3]):
        raise DamagedFile(video, f"it is {list(frames.shape[:3])}, and the points are {list(points.shape[:3])}")
    valid = found["valid_mask"].bool() & points.isfinite().all(-1) & (points[..., 2] > 0)
    with reading(data):
        k = fitted_intrinsics(points, valid).expand(len(points), 3, 3)
    depth = torch.where(valid, points[..., 2], torch.zeros_like(points[..., 2]))
    stored = found["camera_pose"].double()
    stored[:, 3] = torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
    matrices = assemble.orthonormal(stored)
    cam2world, verdict = reprojection.choose_poses(name, matrices, depth, k, DOCUMENTED, (reprojection.OPENCV,))
    settings: dict[str, Any] = {"pose_reading": verdict.record()}
    flow = flow_valid = None
    if "scene_flow" in found and len(points) > 1:
        known, told = _mask(name, found, valid)
        moved = found["scene_flow"]
        flow, flow_valid = assemble.world_flow(depth, k, cam2world, lambda t, local: (local + moved[t], known[t]))
        settings |= told
    return assemble.scene_from_depth(
        dataset="motioncrafter",
        sequence=name,
        images=frames if frames.dtype == torch.uint8 else (frames * 255).round().to(torch.uint8),
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(points), 24.0),
        scene_flow=flow,
        flow_valid=flow_valid,
        settings=settings,
    )


def write(root: Path, name: str, scene: Scene4D) -> None:
    """Write a scene as a clip `name` below root, and list it in meta_infos.txt.

    Points are float32 in camera axes, poses float64 camera-to-world, scene flow between cameras; masks are explicit.

    Raises:
        ValueError: the scene has no cameras.
        OSError: the disk is full or read-only.
    """
    import h5py

    if scene.cameras is None:
        raise ValueError("MotionCrafter's clips hold camera poses, and this scene has no cameras.")
    cam2world = scene.cameras.cam2world.double()
    local = pose.transform(pose.inverse(cam2world), scene.points.double()) * scene.valid[..., None]
    arrays = {
        "point_map": local.float(),
        "valid_mask": scene.valid,
        "camera_pose": cam2world,
    }
    if scene.scene_flow is not None and scene.flow_valid is not None:
        world, moved = scene.points.double(), torch.zeros_like(local)
        moved[:-1] = sceneflow.world_to_camera_flow(
            world[:-1], scene.scene_flow[:-1].double(), cam2world[:-1], cam2world[1:]
        )
        arrays["scene_flow"] = (moved * scene.flow_valid[..., None]).float()
        arrays["deform_mask"] = scene.flow_valid
    data, video = Path(root) / f"{name}{DATA}", Path(root) / f"{name}{RGB}"
    data.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(data) as draft, h5py.File(draft, "w") as file:
        for key, value in arrays.items():
            file.create_dataset(key, data=value.numpy(), chunks=(1, *value.shape[1:]), compression="gzip")
    write_video(video, scene.video)
    listing = Path(root) / LISTS[0]
    lines = listing.read_text().splitlines() if listing.exists() else []
    line = f"{name}{RGB} {name}{DATA} {len(scene)}"
    with atomic_file(listing) as draft:
        draft.write_text("\n".join([*(old for old in lines if old.split()[:1] != [f"{name}{RGB}"]), line]) + "\n")
