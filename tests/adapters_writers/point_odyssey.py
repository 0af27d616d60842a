"""PointOdyssey: depth of 15 mm steps, planar or along the ray; world-to-camera; tracks in the world."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import make


def write(root: Path, along_ray: bool = False) -> list[Expected]:
    truth = make(metres=10.0)  # so that steps of 15 mm are small
    folder = root / "val" / "ani"
    frames = len(truth.depth)
    ray = np.linalg.norm(truth.local, axis=-1)
    stored = np.where(truth.depth > 0, ray if along_ray else truth.depth, 1000)
    for t in range(frames):
        packing.jpg(folder / f"rgbs/rgb_{t:05d}.jpg", truth.rgb[t])
        packing.png(folder / f"depths/depth_{t:05d}.png", packing.whole(stored[t] / 1000 * 65535))
    solid = (truth.depth[0] > 0).reshape(-1)
    points, visible = truth.tracks.reshape(frames, -1, 3)[:, solid], truth.visible.reshape(frames, -1)[:, solid]
    path = packing.folder(folder / "anno.npz")
    np.savez(
        path, intrinsics=np.stack([truth.k] * frames).astype(np.float32), extrinsics=truth.world2cam.astype(np.float32),
        trajs_3d=points.astype(np.float32), trajs_2d=np.zeros((*points.shape[:2], 2), np.float32), visibs=visible,
        valids=np.ones_like(visible),
    )  # fmt: skip
    return [
        Expected(
            truth=truth,
            name="val/ani",
            reason="tracks are up to half a pixel beside their pixel, on a turning ball; depth has steps of 15.3 mm",
            depth_step=lambda z: 0.0077 + 0 * z,
            flow_step=lambda z: 0.005 * z,
            flow_known=truth.depth > 0,
            flow_at_least=True,
            pose_step=1e-6,
            rgb_step=6,
            settings={"depth_reading.chosen": "distance along the ray" if along_ray else "planar depth"},
            tracks=(points, visible),
            damage=("**/depth_00001.png", "**/anno.npz", "**/rgb_00002.jpg"),
        )
    ]
