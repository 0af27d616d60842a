"""BEDLAM: Unreal's left-handed axes in centimetres and degrees, depth in an EXR channel in centimetres."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default


def write(root: Path, along_ray: bool = False) -> list[Expected]:
    truth = default()
    base, name = root / "20221010_3_1000_batch01hand", "seq_000000"
    lines = ["name,x,y,z,yaw,pitch,roll,focal_length,sensor_width,sensor_height,hfov"]
    width = truth.depth.shape[2]
    for t, pose in enumerate(truth.cam2world):
        # Unreal (x forward, y right, z up) from OpenCV (x right, y down, z forward): (z, x, -y)
        unreal = lambda v: np.array([v[2], v[0], -v[1]])  # noqa: E731
        forward, right, up = unreal(pose[:3, 2]), unreal(pose[:3, 0]), unreal(-pose[:3, 1])
        yaw = np.degrees(np.arctan2(forward[1], forward[0]))
        pitch = np.degrees(np.arcsin(forward[2]))
        roll = np.degrees(np.arctan2(-right[2], up[2]))
        place = unreal(pose[:3, 3]) * 100
        focal = truth.k[0, 0] / width * 36
        values = ",".join(f"{v:.9f}" for v in (*place, yaw, pitch, roll, focal, 36, 20.25, 60))
        lines.append(f"{name}_{5 * t:04d}.png,{values}")
        packing.png(base / f"png/{name}/{name}_{5 * t:04d}.png", truth.rgb[t])
        depth = np.linalg.norm(truth.local[t], axis=-1) if along_ray else truth.depth[t]
        stored = np.where(truth.depth[t] > 0, depth * 100, 1e10)
        packing.exr(base / f"depth/{name}/{name}_{5 * t:04d}_depth.exr", Depth=stored)
    packing.text(base / f"ground_truth/camera/{name}_camera.csv", lines)
    return [
        Expected(
            truth=truth,
            name=f"{base.name}/{name}",
            reason="float32 centimetres; angles have nine digits",
            settings={"depth_reading.chosen": "distance along the ray" if along_ray else "planar depth"},
            damage=("**/seq_000000_0005_depth.exr", "**/seq_000000_0010.png"),
        )
    ]
