"""Spring: HDF5 maps of twice the image's size (here, samples that must not be taken are NaN), files count from 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default


def doubled(values: np.ndarray) -> np.ndarray:
    out = np.full((2 * values.shape[0], 2 * values.shape[1], *values.shape[2:]), np.nan, np.float32)
    out[::2, ::2] = values
    return out


def write(root: Path) -> list[Expected]:
    truth = default()
    folder = root / "spring" / "train" / "0001"
    disparity = np.where(truth.depth > 0, 0.065 * truth.k[0, 0] / np.maximum(truth.depth, 1e-9), 0)
    for t in range(len(truth.depth)):
        packing.png(folder / f"frame_left/frame_left_{t + 1:04d}.png", truth.rgb[t])
        packing.hdf5(folder / f"disp1_left/disp1_left_{t + 1:04d}.dsp5", disparity=doubled(disparity[t]))
        if t + 1 < len(truth.depth):
            later = 0.065 * truth.k[0, 0] / np.where(truth.depth[t] > 0, truth.ahead[t][..., 2], np.nan)
            packing.hdf5(folder / f"disp2_FW_left/disp2_FW_left_{t + 1:04d}.dsp5", disparity=doubled(later))
            packing.hdf5(folder / f"flow_FW_left/flow_FW_left_{t + 1:04d}.flo5", flow=doubled(truth.optical[t]))
    k = truth.k
    packing.text(
        folder / "cam_data/intrinsics.txt", [packing.numbers([k[0, 0], k[1, 1], k[0, 2], k[1, 2]])] * len(truth.depth)
    )
    packing.text(folder / "cam_data/extrinsics.txt", [packing.numbers(pose) for pose in truth.world2cam])
    return [
        Expected(
            truth=truth,
            name="spring/train/0001",
            reason="disparity and flow are float32",
            flow_step=lambda z: 1e-6 * z,
            damage=("**/disp1_left_0002.dsp5", "**/flow_FW_left_0001.flo5", "**/frame_left_0003.png"),
        )
    ]
