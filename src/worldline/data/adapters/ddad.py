"""DDAD and other DGP datasets: scene_*.json, calibration/<key>.json, images and laser scans (.npz) per scene folder.

A scene's JSON lists samples (times) with datum_keys and a calibration_key, and data by key: an image or a cloud with
its file and its pose, sensor-to-world (quaternion qw, qx, qy, qz and translation; OpenCV camera axes). Depth is the
laser scan of the same sample projected into the camera, sparse (data-formats.md 4.11).
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
from worldline.data.adapters import assemble, containers, decode, encodings, lidar
from worldline.data.clips import Sequence, reading
from worldline.geometry import pose
from worldline.scene import Scene4D

FPS = 10.0


def sequences(root: Path) -> Iterator[Sequence]:
    """One per scene and camera."""
    root = Path(root)
    tables = sorted(root.rglob("scene_*.json"))
    if not tables:
        raise FileNotFoundError(f"No scene_*.json below {root}; give the root of a DGP dataset such as DDAD.")
    for table in tables:
        scene = decode.name_of(table.parent, root)
        yield from decode.listed(scene, _listed, table, scene)


def _listed(table: Path, scene: str) -> Iterator[Sequence]:
    samples = decode.one(_samples, table)
    for camera in sorted({name for sample in samples for name, datum in sample.items() if "image" in datum}):
        chosen = [sample for sample in samples if camera in sample]
        name = f"{scene}/{camera}"
        yield Sequence(name=name, frames=len(chosen), read=partial(_read, table.parent, camera, name, chosen))


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _samples(path: Path) -> list[dict[str, Any]]:
    """What every sample of a scene holds, by sensor: {"image" or "point_cloud", "calibration"}."""
    scene = containers.read_json(path)
    data = {datum["key"]: (datum["id"]["name"], datum["datum"]) for datum in scene["data"]}
    out = []
    for sample in scene["samples"]:
        content = dict(data[key] for key in sample["datum_keys"])
        out.append({name: {**datum, "calibration": sample["calibration_key"]} for name, datum in content.items()})
    return out


def read_pose(value: Any) -> Tensor:
    """A pose of {"rotation": {qw, qx, qy, qz}, "translation": {x, y, z}}."""
    q, t = value["rotation"], value["translation"]
    turned = pose.quaternion_to_matrix(torch.tensor([q[key] for key in ("qw", "qx", "qy", "qz")], dtype=torch.float64))
    return pose.from_rt(turned, torch.tensor([t[key] for key in "xyz"], dtype=torch.float64))


def read_scan(path: Path) -> Tensor:
    """Laser points [N, 3] in the sensor's frame."""
    with np.load(encodings.require(path), allow_pickle=False) as file:
        values = file["data"] if "data" in file.files else file[file.files[0]]
    return torch.from_numpy(np.ascontiguousarray(values[:, :3], dtype=np.float64))


def _intrinsics(path: Path, camera: str) -> Tensor:
    found = containers.read_json(path)
    k = found["intrinsics"][found["names"].index(camera)]
    matrix = assemble.pinhole(k["fx"], k["fy"], k["cx"], k["cy"])
    matrix[0, 1] = k.get("skew", 0.0)
    return matrix


def _read(folder: Path, camera: str, name: str, samples: list[dict[str, Any]], start: int, stop: int) -> Scene4D:
    samples = samples[start:stop]
    shots = [sample[camera] for sample in samples]
    with reading(folder / shots[0]["image"]["filename"]):
        cam2world = torch.stack([read_pose(shot["image"]["pose"]) for shot in shots])
    k = decode.stack(_intrinsics, [folder / "calibration" / f"{shot['calibration']}.json" for shot in shots], camera)
    images = decode.stack(encodings.read_rgb, [folder / shot["image"]["filename"] for shot in shots])
    size = (images.shape[1], images.shape[2])
    depth = torch.zeros(len(samples), *size)
    for t, sample in enumerate(samples):
        points = [
            pose.transform(
                pose.inverse(cam2world[t]) @ read_pose(datum["point_cloud"]["pose"]),
                decode.one(read_scan, folder / datum["point_cloud"]["filename"]),
            )
            for datum in sample.values()
            if "point_cloud" in datum
        ]
        if points:
            depth[t] = lidar.depth_map(torch.cat(points), k[t], size)
    return assemble.scene_from_depth(
        dataset="ddad",
        sequence=name,
        images=images,
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(samples), FPS),
        settings={"depth": "laser, sparse"},
    )
