"""TAPVid-3D: one .npz per video with images_jpeg_bytes, tracks_XYZ, visibility, fx_fy_cx_cy and maybe extrinsics_w2c.

Tracks are in the frame of the camera of each time, metres; there is no dense depth, so points are known only at the
pixels that see a track. Older descriptions name the arrays intrinsics and tracks_xyz (the benchmark's README). Without
extrinsics every camera is the identity, and its motion is part of the tracks. The jpegs may be stored as Python
objects, that is, pickled: they are read as data (inert.py), and nothing in the file is run.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, inert, tracks
from worldline.data.clips import Clip, PointTracks, Sequence, reading
from worldline.geometry import pose
from worldline.scene import Scene4D

FPS = 30.0


def sequences(root: Path) -> Iterator[Sequence]:
    """One per .npz file with visibility below root."""
    root = Path(root)
    files = sorted(root.rglob("*.npz"))
    if not files:
        raise FileNotFoundError(f"No .npz below {root}; generate TAPVid-3D first (its README says how).")
    for path in files:
        name = path.relative_to(root).with_suffix("").as_posix()
        yield from decode.listed(name, _listed, path, name)


def _listed(path: Path, name: str) -> Iterator[Sequence]:
    with reading(path):
        frames = inert.npz_shapes(path)["visibility"][0]
    yield Sequence(name=name, frames=frames, read=partial(_read, path, name))


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _jpeg(data: bytes) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def _either(found: dict[str, np.ndarray], *names: str) -> Tensor:
    """The array that goes by one of several names."""
    for name in names:
        if name in found:
            return torch.from_numpy(np.array(found[name], dtype=np.float64))
    raise ValueError(f"it has none of the arrays {', '.join(names)}")


def _read(path: Path, name: str, start: int, stop: int) -> Clip:
    with reading(path):
        found = inert.read_npz(path)
        images = torch.stack([_jpeg(bytes(data)) for data in found["images_jpeg_bytes"][start:stop]])
        visible = torch.from_numpy(np.array(found["visibility"][start:stop])).bool()
        local = _either(found, "tracks_XYZ", "tracks_xyz")[start:stop]
        k = assemble.pinhole(*_either(found, "fx_fy_cx_cy", "intrinsics").flatten()[:4].tolist())
        cam2world = torch.eye(4, dtype=torch.float64).repeat(stop - start, 1, 1)
        settings: dict[str, object] = {"depth": "at tracks only"}
        if "extrinsics_w2c" in found:
            cam2world = pose.inverse(assemble.orthonormal(_either(found, "extrinsics_w2c")[start:stop]))
        else:
            settings["camera_motion"] = "unknown; part of the tracks"
    count, size = len(images), (images.shape[1], images.shape[2])
    relative = pose.relative_to_first(cam2world)
    known = local.isfinite().all(-1)
    points = pose.transform(relative, torch.where(known[..., None], local, torch.zeros_like(local)))
    followed = PointTracks(
        points=torch.where(known[..., None], points, torch.zeros_like(points)).float(),
        known=known,
        visible=visible & known,
    )
    intrinsics = k.expand(count, 3, 3)
    depth = tracks.splat_depth(followed, intrinsics, relative, size)
    flow, valid = tracks.splat_flow(followed, depth, intrinsics, relative)
    scene = assemble.scene_from_depth(
        dataset="tapvid3d",
        sequence=name,
        images=images,
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(count, FPS),
        scene_flow=flow,
        flow_valid=valid,
        settings=settings,
    )
    return Clip(scene=scene, tracks=followed)
