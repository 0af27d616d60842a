"""Dynamic Replica: {train,valid,test}/frame_annotations_<split>.jgz (gzipped JSON) and the files it names.

Depth is a 16-bit png whose bits are float16 metres. Cameras are PyTorch3D's: row vectors, x left, y up, normalised
device coordinates; the principal point counts from the image's edge, so that pixel centres at integers shift it by half
a pixel. Trajectories (.pth, one file per frame, read as weights only) are sparse, in the world (data-formats.md 4.9).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, tracks
from worldline.data.clips import Clip, PointTracks, Sequence, reading
from worldline.geometry import pose
from worldline.scene import Scene4D

FPS = 30.0
OPENCV_FROM_PYTORCH3D = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))


def sequences(root: Path) -> Iterator[Sequence]:
    """One per split, sequence and camera (left, right)."""
    root = Path(root)
    tables = sorted(root.rglob("frame_annotations_*.jgz"))
    if not tables:
        raise FileNotFoundError(f"No frame_annotations_*.jgz below {root}; give the root of Dynamic Replica.")
    for table in tables:
        split = table.name.removeprefix("frame_annotations_").removesuffix(".jgz")
        yield from decode.listed(split, _listed, table, split)


def _listed(table: Path, split: str) -> Iterator[Sequence]:
    groups: dict[tuple[str, str], list[Any]] = {}
    with reading(table):
        for frame in containers.read_json(table):
            groups.setdefault((frame["sequence_name"], str(frame["camera_name"])), []).append(frame)
    for (name, view), frames in sorted(groups.items()):
        frames.sort(key=lambda frame: frame["frame_number"])
        title = f"{split}/{name}/{view}"
        read = partial(_read, table.parent, title, frames)
        yield Sequence(name=title, frames=len(frames), read=read, facts={"synthetic": True, "split": split})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def camera_of(viewpoint: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(intrinsics in pixels, cam2world with OpenCV axes) of a PyTorch3D viewpoint.

    Raises:
        ValueError: the intrinsics are in no known format.
    """
    height, width = size
    kind = str(viewpoint["intrinsics_format"]).lower()
    scales = {
        "ndc_isotropic": (min(size) / 2, min(size) / 2),
        "ndc_norm_image_bounds": (width / 2, height / 2),
    }
    if kind not in scales:
        raise ValueError(f"the intrinsics format {kind!r} is not one of {', '.join(scales)}")
    (sx, sy), focal, centre = scales[kind], viewpoint["focal_length"], viewpoint["principal_point"]
    k = assemble.pinhole(
        focal[0] * sx, focal[1] * sy, width / 2 - centre[0] * sx - 0.5, height / 2 - centre[1] * sy - 0.5
    )
    rotation = torch.tensor(viewpoint["R"], dtype=torch.float64).mT  # of row vectors
    translation = torch.tensor(viewpoint["T"], dtype=torch.float64)
    world2cam = pose.from_rt(OPENCV_FROM_PYTORCH3D @ rotation, OPENCV_FROM_PYTORCH3D @ translation)
    return k, pose.inverse(world2cam)


def _trajectory(path: Path) -> tuple[Tensor, Tensor]:
    """World positions [N, 3] and visibility [N] of one frame's points."""
    found = torch.load(encodings.require(path), map_location="cpu", weights_only=True)
    points, seen = found["traj_3d_world"].float(), found["verts_inds_vis"]
    if seen.dtype != torch.bool:  # indices of the visible ones
        seen = torch.zeros(len(points), dtype=torch.bool).index_fill_(0, seen.long(), True)
    return points[:, :3], seen


def _read(base: Path, name: str, frames: list[Any], start: int, stop: int) -> Scene4D | Clip:
    frames = frames[start:stop]
    images = decode.stack(encodings.read_rgb, [base / frame["image"]["path"] for frame in frames])
    depth = decode.stack(encodings.read_float16_depth, [base / frame["depth"]["path"] for frame in frames])
    size = (images.shape[1], images.shape[2])
    with reading(base / frames[0]["image"]["path"]):
        cameras = [camera_of(frame["viewpoint"], size) for frame in frames]
    k, cam2world = torch.stack([c[0] for c in cameras]), torch.stack([c[1] for c in cameras])
    followed = flow = valid = None
    paths = [(frame.get("trajectories") or {}).get("path") for frame in frames]
    if all(paths):
        cam2world = assemble.orthonormal(cam2world)
        relative, to_first = pose.relative_to_first(cam2world), pose.inverse(cam2world[0])
        found = [decode.one(_trajectory, base / str(path)) for path in paths]
        points = pose.transform(to_first, torch.stack([p for p, _ in found]).double()).float()
        known = points.isfinite().all(-1)
        points = torch.where(known[..., None], points, torch.zeros_like(points))
        followed = PointTracks(points=points, known=known, visible=torch.stack([seen for _, seen in found]) & known)
        flow, valid = tracks.splat_flow(followed, depth, k, relative)
    scene = assemble.scene_from_depth(
        dataset="dynamic_replica",
        sequence=name,
        images=images,
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(frames), FPS),
        scene_flow=flow,
        flow_valid=valid,
        settings={"synthetic": True, "split": name.split("/")[0]},
    )
    return Clip(scene=scene, tracks=followed)
