"""FlyingThings3D and Monkaa: pfm files, and cameras as 4x4 camera-to-world with Blender axes (y up, z back)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import narrow


def write(root: Path, inverted: bool = False) -> list[Expected]:
    truth = narrow(1050, 1050, 479.5, 269.5, 10.0)
    scene, lines = "TRAIN/A/0000", []
    for t in range(len(truth.depth)):
        name = f"{t + 6:04d}"
        packing.png(root / f"frames_cleanpass/{scene}/left/{name}.png", truth.rgb[t])
        disparity = np.where(truth.depth[t] > 0, 1050 / np.maximum(truth.depth[t], 1e-9), 0)
        packing.pfm(root / f"disparity/{scene}/left/{name}.pfm", disparity)
        blender = truth.cam2world[t] * np.array([1.0, -1.0, -1.0, 1.0])  # columns: right, up, back, place
        stored = np.linalg.inv(blender) if inverted else blender
        right = stored + np.array([[0, 0, 0, 1.0]] + [[0] * 4] * 3)
        lines += [f"Frame {t + 6}", f"L {packing.numbers(stored)}", f"R {packing.numbers(right)}", ""]
        if t + 1 == len(truth.depth):
            continue
        later = np.where(truth.depth[t] > 0, 1050 / np.where(truth.depth[t] > 0, truth.ahead[t][..., 2], 1), 0)
        packing.pfm(root / f"disparity_change/{scene}/into_future/left/{name}.pfm", later - disparity)
        flow = np.concatenate([truth.optical[t], np.zeros((*truth.depth[t].shape, 1))], -1)
        packing.pfm(root / f"optical_flow/{scene}/into_future/left/OpticalFlowIntoFuture_{name}_L.pfm", flow)
    packing.text(root / f"camera_data/{scene}/camera_data.txt", lines)
    return [
        Expected(
            truth=truth,
            name=scene,
            reason="disparity, its change and flow are float32",
            flow_step=lambda z: 4e-6 * z,
            settings={"pose_reading.chosen": ("world" if inverted else "camera") + " to "
                      + ("camera" if inverted else "world") + "; x right, y up, z backward"},
            damage=("**/disparity/**/0007.pfm", "**/OpticalFlowIntoFuture_0006_L.pfm", "**/left/0008.png"),
        )
    ]  # fmt: skip
