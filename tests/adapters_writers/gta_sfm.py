"""GTA-SfM: everything of a scene in one HDF5 file, images as encoded bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default


def write(root: Path, inverted: bool = False) -> list[Expected]:
    truth = default()
    arrays = {}
    for t, pose in enumerate(truth.cam2world):
        arrays[f"image_{t}"] = np.frombuffer(packing.png_bytes(truth.rgb[t]), np.uint8)
        arrays[f"depth_{t}"] = np.where(truth.depth[t] > 0, truth.depth[t], 1e4).astype(np.float32)
        arrays[f"K_{t}"] = truth.k
        arrays[f"pose_{t}"] = np.linalg.inv(pose) if inverted else pose
    packing.hdf5(root / "train" / "20190127_165506.hdf5", **arrays)
    direction = "world to camera" if inverted else "camera to world"
    return [
        Expected(
            truth=truth,
            name="train/20190127_165506",
            reason="float32 depth",
            settings={"pose_reading.chosen": f"{direction}; x right, y down, z forward"},
            damage=("**/*.hdf5",),
        )
    ]
