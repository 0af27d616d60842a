"""KITTI scene flow 2015: disparities in steps of 1/256 pixel, flow of 1/64, no poses, the second depth on the first."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import make

BASELINE = 0.54


def write(root: Path) -> list[Expected]:
    truth = make(frames=2)
    base, solid, reach = root / "training", truth.depth[0] > 0, truth.k[0, 0] * BASELINE
    later = np.where(solid, truth.ahead[0][..., 2], 1)
    far = lambda z: packing.whole(np.where(solid, reach / np.where(solid, z, 1) * 256, 0))  # noqa: E731
    packing.png(base / "disp_occ_0/000007_10.png", far(truth.depth[0]))
    packing.png(base / "disp_occ_1/000007_10.png", far(later))
    flow = np.concatenate([truth.optical[0] * 64 + 32768, np.ones((*solid.shape, 1))], -1) * solid[..., None]
    packing.png(base / "flow_occ/000007_10.png", packing.whole(flow))
    packing.png(base / "obj_map/000007_10.png", np.where(truth.object_id[0] == 1, 1, 0).astype(np.uint8))
    for n in (10, 11):
        packing.png(base / f"image_2/000007_{n}.png", truth.rgb[n - 10])
    lines = ["calib_time: 09-Jan-2012 13:57:47"]
    for name, place in (("02", -0.06), ("03", -0.06 + BASELINE)):
        beside = np.concatenate([np.eye(3), np.array([[-place], [0.0], [0.0]])], -1)
        lines.append(f"P_rect_{name}: {packing.numbers(truth.k @ beside)}")
    packing.text(base / "calib_cam_to_cam/000007.txt", lines)
    return [
        Expected(
            truth=truth,
            name="000007",
            reason="half a step of disparity moves the depth by z^2 / (f b 512); flow is rounded to 1/64 pixel",
            depth_step=lambda z: z**2 / reach / 512,
            flow_step=lambda z: 0.003 * z,
            valid=np.stack([solid, np.zeros_like(solid)]),
            cameras=False,
            settings={"camera_motion": "unknown; part of the scene flow"},
            damage=("**/disp_occ_0/*.png", "**/disp_occ_1/*.png", "**/flow_occ/*.png", "**/*_11.png"),
        )
    ]
