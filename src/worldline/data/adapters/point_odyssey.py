"""PointOdyssey: {train,val,test}/<sequence>/{rgbs/rgb_%05d.jpg, depths/depth_%05d.png, anno.npz}.

Depth is 16 bit, metres = v / 65535 * 1000 (a step of 15 mm; above 65500 invalid); extrinsics are world-to-camera with
OpenCV axes. Tracks are sparse (trajs_3d in the world), so scene flow is known at the pixels they are seen at. Published
readers disagree on whether depth is planar or along the ray; it is Blender's Z pass, planar, unless the tracks, whose
distance is known, say otherwise (data-formats.md 4.7).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, reprojection, tracks
from worldline.data.clips import Clip, PointTracks, Sequence
from worldline.geometry import camera, pose
from worldline.scene import Scene4D

FPS = 30.0
UNITS_PER_METRE = 65535 / 1000
INVALID_ABOVE = 65500


def sequences(root: Path) -> Iterator[Sequence]:
    """One per folder with anno.npz and rgbs below root."""
    folders = sorted(path.parent for path in Path(root).rglob("anno.npz") if (path.parent / "rgbs").is_dir())
    if not folders:
        raise FileNotFoundError(f"No folder with anno.npz and rgbs below {root}; give the root of PointOdyssey.")
    for folder in folders:
        name = decode.name_of(folder, Path(root))
        yield Sequence(
            name=name,
            frames=len(list((folder / "rgbs").glob("rgb_*.jpg"))),
            read=partial(_read, folder, name),
            facts={"synthetic": True},
        )


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _annotations(path: Path, start: int, stop: int) -> dict[str, Tensor]:
    names = ("intrinsics", "extrinsics", "trajs_3d", "visibs", "valids")
    arrays = containers.read_npz(path, *names)
    if min(len(array) for array in arrays) < stop:
        raise ValueError(f"it has {min(len(array) for array in arrays)} times, and frame {stop - 1} needs one")
    return {name: torch.from_numpy(np.array(array[start:stop])) for name, array in zip(names, arrays, strict=True)}


def _read(folder: Path, name: str, start: int, stop: int) -> Clip:
    files = lambda kind, stem, end: [folder / kind / f"{stem}_{t:05d}{end}" for t in range(start, stop)]  # noqa: E731
    found = decode.one(_annotations, folder / "anno.npz", start, stop)
    k, world2cam = found["intrinsics"].double(), found["extrinsics"].double()
    stored = decode.stack(encodings.read_depth_image, files("depths", "depth", ".png"), UNITS_PER_METRE)
    stored = torch.where(stored <= INVALID_ABOVE / UNITS_PER_METRE, stored, torch.zeros_like(stored))
    cam2world = pose.inverse(assemble.orthonormal(world2cam))
    relative = pose.relative_to_first(cam2world)
    known = found["valids"].bool() & found["trajs_3d"].isfinite().all(-1)
    points = pose.transform(pose.inverse(cam2world[0]), found["trajs_3d"].double()).float()
    followed = PointTracks(
        points=torch.where(known[..., None], points, torch.zeros_like(points)),
        known=known,
        visible=found["visibs"].bool() & known,
    )
    depth, verdict = choose_depth(name, stored, k, relative, followed)
    flow, valid = tracks.splat_flow(followed, depth, k, relative)
    scene = assemble.scene_from_depth(
        dataset="point_odyssey",
        sequence=name,
        images=decode.stack(encodings.read_rgb, files("rgbs", "rgb", ".jpg")),
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(stop - start, FPS),
        scene_flow=flow,
        flow_valid=valid,
        settings={"synthetic": True, "first_frame": start, "depth_reading": verdict.record()},
    )
    return Clip(scene=scene, tracks=followed)


def choose_depth(
    name: str, stored: Tensor, k: Tensor, cam2world: Tensor, followed: PointTracks
) -> tuple[Tensor, reprojection.Verdict]:
    """Planar or along the ray: whichever agrees with the depth of the visible tracks at their pixels (within 1 %)."""
    readings = {reprojection.PLANAR: stored, reprojection.ALONG_RAY: reprojection.planar(stored, k)}
    size = (stored.shape[1], stored.shape[2])
    agreeing, total = dict.fromkeys(readings, 0), 0
    for t in range(len(stored)):
        local = pose.transform(pose.inverse(cam2world[t]), followed.points[t].double())
        uv = camera.project(local, k[t])
        row, column, inside = tracks.pixels(uv, size)
        inside &= followed.visible[t] & (local[:, 2] > 0)
        total += int(inside.sum())
        for reading, depth in readings.items():
            seen = depth[t][row[inside], column[inside]].double()
            agreeing[reading] += int(((seen - local[inside, 2]).abs() <= 0.01 * local[inside, 2]).sum())
    scores = {reading: (count / total,) for reading, count in agreeing.items()} if total else {}
    verdict = reprojection.decide(f"depth of {name}", reprojection.PLANAR, scores)
    return readings[verdict.chosen], verdict
