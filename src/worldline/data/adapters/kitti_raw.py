"""KITTI raw: <date>/<drive>_sync/{image_02, image_03, velodyne_points, oxts}/data, calibration files in <date>.

Depth is the laser scan projected into the rectified image (sparse, about 4 % of the pixels). Poses are those of GPS and
inertia, good to some centimetres between frames. Traffic moves, and no flow is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings, kitti, lidar
from worldline.data.clips import Sequence, reading
from worldline.geometry import pose
from worldline.scene import Scene4D

FPS = 10.0
CAMERAS = ("image_02", "image_03")


def sequences(root: Path) -> Iterator[Sequence]:
    """One per drive and colour camera."""
    found = False
    for folder in drives(Path(root)):
        for camera in (name for name in CAMERAS if (folder / name / "data").is_dir()):
            stems = [path.stem for path in sorted((folder / camera / "data").glob("*.png"))]
            stems = [stem for stem in stems if (folder / "oxts" / "data" / f"{stem}.txt").exists()]
            name, found = f"{folder.name}/{camera}", True
            yield Sequence(name=name, frames=len(stems), read=partial(_read, folder, camera, name, stems))
    if not found:
        raise FileNotFoundError(f"No */*_sync/image_02/data below {root}; give the root of the KITTI raw data.")


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def drives(root: Path) -> list[Path]:
    """The folders of drives: those beside a day's calibration."""
    return sorted(path.parent for path in root.rglob("oxts") if (path.parents[1] / "calib_cam_to_cam.txt").exists())


def read_scan(path: Path) -> Tensor:
    """Laser points [N, 3] of a velodyne file: float32 x, y, z, reflectance."""
    values = np.frombuffer(encodings.require(path).read_bytes(), "<f4")
    if len(values) % 4:
        raise ValueError(f"{path} does not hold four numbers per point; it is cut off.")
    return torch.from_numpy(values.reshape(-1, 4)[:, :3].astype(np.float64))


def rig_and_poses(folder: Path, camera: str, stems: list[str]) -> tuple[kitti.Rig, Tensor]:
    """(calibration of the camera, cam2world) of frames of a drive.

    Raises:
        DamagedFile: a calibration or oxts file is.
    """
    day = folder.parent
    with reading(day / "calib_cam_to_cam.txt"):
        rig = kitti.read_rig(day, camera.removeprefix("image_"))
    records = decode.stack(kitti.read_oxts, [folder / "oxts" / "data" / f"{stem}.txt" for stem in stems])
    return rig, kitti.imu_poses(records) @ pose.inverse(rig.cam_from_imu)


def _read(folder: Path, camera: str, name: str, stems: list[str], start: int, stop: int) -> Scene4D:
    stems = stems[start:stop]
    rig, cam2world = rig_and_poses(folder, camera, stems)
    images = decode.stack(encodings.read_rgb, [folder / camera / "data" / f"{stem}.png" for stem in stems])
    size = (images.shape[1], images.shape[2])
    depth = torch.zeros(len(stems), *size)
    for t, stem in enumerate(stems):
        path = folder / "velodyne_points" / "data" / f"{stem}.bin"
        if path.exists():  # a few scans of the data set are missing
            scan = decode.one(read_scan, path)
            depth[t] = lidar.depth_map(pose.transform(rig.cam_from_velo, scan), rig.intrinsics, size)
    return assemble.scene_from_depth(
        dataset="kitti_raw",
        sequence=name,
        images=images,
        depth=depth,
        intrinsics=rig.intrinsics,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(stems), FPS),
        settings={"first_frame": stems[0], "depth": "laser, sparse"},
    )
