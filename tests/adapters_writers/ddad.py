"""DDAD (DGP): JSON of samples and data by key, poses sensor-to-world, laser scans in npz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import make, rigid, to, turn


def stored(pose: np.ndarray) -> dict[str, Any]:
    w, x, y, z = packing.wxyz(pose[:3, :3])
    return {
        "translation": dict(zip("xyz", pose[:3, 3].tolist(), strict=True)),
        "rotation": {"qw": w, "qx": x, "qy": y, "qz": z},
    }


def write(root: Path) -> list[Expected]:
    truth = make(metres=2.0)
    folder, samples, data = root / "000000", [], []
    cam_from_lidar = rigid(turn((1, 2, 0.5), 1.2), (0.3, -0.2, 0.9))
    for t, pose in enumerate(truth.cam2world):
        image, scan = f"rgb/CAMERA_01/{15 + t:08d}.png", f"point_cloud/LIDAR/{15 + t:08d}.npz"
        packing.png(folder / image, truth.rgb[t])
        points = to(np.linalg.inv(cam_from_lidar), truth.local[t][truth.depth[t] > 0])
        values = np.concatenate([points, np.ones((len(points), 1))], -1)
        np.savez_compressed(packing.folder(folder / scan), data=values)
        samples.append(
            {"id": {"timestamp": f"2019-09-09T17:43:5{t}Z"}, "datum_keys": [f"l{t}", f"c{t}"], "calibration_key": "abc"}
        )
        shot = {"image": {"filename": image, "height": 24, "width": 32, "channels": 3, "pose": stored(pose)}}
        cloud = {"point_cloud": {"filename": scan, "pose": stored(pose @ cam_from_lidar)}}
        data.append({"key": f"c{t}", "id": {"name": "CAMERA_01"}, "datum": shot})
        data.append({"key": f"l{t}", "id": {"name": "LIDAR"}, "datum": cloud})
    packing.dump(folder / "scene_53c5.json", {"name": "000000", "samples": samples, "data": data[::-1]})
    k = dict(fx=truth.k[0, 0], fy=truth.k[1, 1], cx=truth.k[0, 2], cy=truth.k[1, 2], skew=0.0)
    zero = {"fx": 0.0, "fy": 0.0, "cx": 0.0, "cy": 0.0, "skew": 0.0}
    packing.dump(folder / "calibration/abc.json", {"names": ["LIDAR", "CAMERA_01"], "intrinsics": [zero, k]})
    return [
        Expected(
            truth=truth,
            name="000000/CAMERA_01",
            reason="float64 throughout; the scene is float32",
            damage=("**/00000016.npz", "**/00000017.png", "**/abc.json"),
        )
    ]
