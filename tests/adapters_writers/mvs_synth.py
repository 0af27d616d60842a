"""MVS-Synth: world-to-camera in one JSON per frame, infinite depth in the sky; axes as asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default


def write(root: Path, y_up: bool = False) -> list[Expected]:
    truth = default()
    folder = root / "GTAV_720" / "0000"
    for t, pose in enumerate(truth.world2cam):
        packing.png(folder / f"images/{t:04d}.png", truth.rgb[t])
        packing.exr(folder / f"depths/{t:04d}.exr", Y=np.where(truth.depth[t] > 0, truth.depth[t], np.inf))
        extrinsic = np.diag([1.0, -1.0 if y_up else 1.0, 1.0, 1.0]) @ pose
        k = {"f_x": truth.k[0, 0], "f_y": truth.k[1, 1], "c_x": truth.k[0, 2], "c_y": truth.k[1, 2]}
        packing.dump(folder / f"poses/{t:04d}.json", k | {"extrinsic": extrinsic.tolist()})
    return [
        Expected(
            truth=truth,
            name="GTAV_720/0000",
            reason="float32 depth",
            settings={"pose_reading.chosen": f"world to camera; x right, y {'up' if y_up else 'down'}, z forward"},
            damage=("**/depths/0001.exr", "**/poses/0002.json", "**/images/0000.png"),
        )
    ]
