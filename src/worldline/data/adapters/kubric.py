"""Kubric MOVi, as rendered (a folder per scene with metadata.json) and as released (TFDS, *.tfrecord*).

Depth is the distance from the camera centre, not z; optical flow is (d_row, d_column); the camera looks along -z with y
up, quaternions are (w, x, y, z) camera-to-world; 16-bit values are v / 65535 (max - min) + min with the ranges of the
scene's metadata (data-formats.md 4.8; https://github.com/google-research/kubric/tree/main/challenges/movi). The pixel
grid is Blender's: the principal point is the middle of the image. World scene flow is exact: object i + 1 of the
segmentation moves with the pose of instance i, and the background (0) stands still. Where optical flow is given, the
share of it that the scene flow explains is in the provenance.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, reprojection, tfrecord
from worldline.data.clips import DamagedFile, Sequence, reading
from worldline.geometry import pose
from worldline.scene import Scene4D

FPS = 12.0
FAR = 10000.0  # nothing was hit: the renderer writes huge numbers
OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


def sequences(root: Path) -> Iterator[Sequence]:
    """One per scene folder, and one per record of the *.tfrecord* files below root."""
    root, found = Path(root), False
    for path in sorted(root.rglob("metadata.json")):
        if not (path.parent / "rgba_00000.png").exists():
            continue
        found, name = True, decode.name_of(path.parent, root)
        count = len(list(path.parent.glob("rgba_*.png")))
        yield Sequence(
            name=name, frames=count, read=partial(_read_folder, path.parent, name), facts={"synthetic": True}
        )
    for path in sorted(path for path in root.rglob("*.tfrecord*") if path.is_file()):
        found, name = True, path.relative_to(root).as_posix()
        yield from decode.listed(name, _listed, path, name)
    if not found:
        raise FileNotFoundError(f"{root} has neither */metadata.json with rgba_00000.png nor *.tfrecord*.")


def _listed(path: Path, file: str) -> Iterator[Sequence]:
    """The records of a file; those before damage are there."""
    with reading(path):
        for number, (offset, length) in enumerate(tfrecord.records(path)):
            name = f"{file}/{number:06d}"
            count = int(tfrecord.peek(path, offset, length, ("metadata/num_frames",))["metadata/num_frames"][0])
            read = partial(_read_record, path, offset, length, name)
            yield Sequence(name=name, frames=count, read=read, facts={"synthetic": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _read_folder(folder: Path, name: str, start: int, stop: int) -> Scene4D:
    files = lambda kind, end: [folder / f"{kind}_{t:05d}{end}" for t in range(start, stop)]  # noqa: E731
    meta = decode.one(containers.read_json, folder / "metadata.json")
    with reading(folder / "metadata.json"):
        motions = _motions(meta["camera"], meta["instances"], start, stop)
    optical = None
    if (folder / "data_ranges.json").exists() and files("forward_flow", ".png")[0].exists():
        with reading(folder / "data_ranges.json"):
            limits = containers.read_json(folder / "data_ranges.json")["forward_flow"]
            span = (float(limits["min"]), float(limits["max"]))
        optical = _unpack(decode.stack(encodings.read_rgb16, files("forward_flow", ".png"))[..., :2], span)
    return _scene(
        name,
        decode.stack(encodings.read_rgb, files("rgba", ".png")),
        decode.stack(_read_tiff, files("depth", ".tiff")),
        decode.stack(_read_ids, files("segmentation", ".png")),
        motions,
        optical,
        start,
    )


def _read_record(path: Path, offset: int, length: int, name: str, start: int, stop: int) -> Scene4D:
    with reading(path):
        found: dict[str, Any] = tfrecord.example(tfrecord.read_record(path, offset, length))
        picture = lambda key: torch.stack([_png(data) for data in found[key][start:stop]])  # noqa: E731
        rgb = picture("video")
        count, size = int(found["metadata/num_frames"][0]), tuple(rgb.shape[1:3])
        split = lambda key, width: found[key].reshape(-1, count, width)  # noqa: E731
        positions, turns = split("instances/positions", 3), split("instances/quaternions", 4)
        instances = [{"positions": p, "quaternions": q} for p, q in zip(positions, turns, strict=True)]
        camera = {key.removeprefix("camera/"): found[key] for key in found if key.startswith("camera/")}
        camera |= {"positions": split("camera/positions", 3)[0], "quaternions": split("camera/quaternions", 4)[0]}
        motions = _motions(camera, instances, start, stop)
        optical = None
        if isinstance(found.get("forward_flow"), np.ndarray):
            stored = torch.from_numpy(found["forward_flow"].reshape(count, *size, 2)[start:stop])
            optical = _unpack(stored, found["metadata/forward_flow_range"])
        depth = _unpack(picture("depth"), found["metadata/depth_range"])
        return _scene(name, rgb, depth, picture("segmentations").long(), motions, optical, start)


def _png(data: bytes) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        values = np.array(image)
    return torch.from_numpy(values.astype(np.int32) if values.dtype != np.uint8 else values)


def _read_tiff(path: Path) -> Tensor:
    from PIL import Image

    with Image.open(encodings.require(path)) as image:
        return torch.from_numpy(np.array(image, dtype=np.float32))


def _read_ids(path: Path) -> Tensor:
    """Indices of a palette png."""
    from PIL import Image

    with Image.open(encodings.require(path)) as image:
        if image.mode not in ("P", "L"):
            raise ValueError(f"{path} has the mode {image.mode}, not one index per pixel.")
        return torch.from_numpy(np.array(image)).long()


def _unpack(stored: Tensor, limits: Any) -> Tensor:
    return stored.float() / 65535 * float(limits[1] - limits[0]) + float(limits[0])


def _poses(positions: Any, quaternions: Any, start: int, stop: int) -> Tensor:
    """Rigid poses of frames from positions and (w, x, y, z)."""
    p, q = (torch.as_tensor(np.asarray(v, dtype=np.float64))[start:stop] for v in (positions, quaternions))
    return pose.from_rt(pose.quaternion_to_matrix(q), p)


def _motions(camera: Any, instances: list[Any], start: int, stop: int) -> tuple[float, Tensor, Tensor]:
    """(focal length in image widths, cam2world [T, 4, 4], objects to world [N, T, 4, 4])."""
    focal = float(np.squeeze(camera["focal_length"])) / float(np.squeeze(camera["sensor_width"]))
    cam2world = _poses(camera["positions"], camera["quaternions"], start, stop) @ OPENGL
    objects = [_poses(item["positions"], item["quaternions"], start, stop) for item in instances]
    return focal, cam2world, torch.stack(objects) if objects else torch.zeros(0, stop - start, 4, 4).double()


def _scene(
    name: str,
    rgb: Tensor,
    distance: Tensor,
    ids: Tensor,
    motions: tuple[float, Tensor, Tensor],
    optical: Tensor | None,
    start: int,
) -> Scene4D:
    focal, cam2world, objects = motions
    (height, width), frames = rgb.shape[1:3], len(rgb)
    f = focal * width
    k = assemble.pinhole(f, f, (width - 1) / 2, (height - 1) / 2)
    if int(ids.max()) > len(objects):
        raise DamagedFile(name, f"the segmentation shows object {int(ids.max())}, but there are {len(objects)}")
    depth = reprojection.planar(distance, k.expand(frames, 3, 3))
    known = (distance > 0) & (distance < FAR)
    depth = torch.where(known, depth, torch.zeros_like(depth))
    still = torch.eye(4, dtype=torch.float64)[None]
    shares: list[float] = []

    def ahead(t: int, local: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.cat([still, objects[:, t + 1] @ torch.linalg.inv(objects[:, t])])  # world motion of every id
        between = pose.inverse(cam2world[t + 1]) @ steps @ cam2world[t]
        moved = (between[ids[t]] @ torch.cat([local, torch.ones(height, width, 1)], -1)[..., None])[..., :3, 0]
        if optical is not None:
            uv = optical[t].flip(-1).double()  # rows first in the file
            shares.append(reprojection.flow_agreement(moved[None], uv[None], known[t][None], k[None], tolerance_px=1.0))
        return moved, known[t]

    flow, valid = assemble.world_flow(depth, k.expand(frames, 3, 3), pose.relative_to_first(cam2world), ahead)
    settings: dict[str, object] = {"synthetic": True, "first_frame": start}
    if shares:
        settings |= reprojection.explained(name, shares)
    return assemble.scene_from_depth(
        dataset="kubric",
        sequence=name,
        images=rgb[..., :3],
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(frames, FPS),
        scene_flow=flow,
        flow_valid=valid,
        extras={"object_id": ids},
        settings=settings,
    )
