"""KITTI depth: 16-bit metres * 256 beside the raw drives, and the cropped validation frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from adapters_writers import kitti_raw, packing
from adapters_writers.expected import Expected
from adapters_writers.truth import make


def write(root: Path) -> list[Expected]:
    truth = kitti_raw.scene()
    kitti_raw.write_drive(root, truth)
    known = (truth.depth > 0) & (np.arange(truth.depth.shape[2]) % 3 != 0)  # depth has holes
    for t, depth in enumerate(truth.depth):
        path = root / "train" / kitti_raw.DRIVE / f"proj_depth/groundtruth/image_02/{t:010d}.png"
        packing.png(path, packing.whole(depth * 256 * known[t]))
    single = make(frames=1, metres=2.0)
    base, stem = root / "depth_selection" / "val_selection_cropped", f"{kitti_raw.DRIVE}_{{}}_0000000005_image_02"
    packing.png(base / "image" / f"{stem.format('image')}.png", single.rgb[0])
    packing.png(
        base / "groundtruth_depth" / f"{stem.format('groundtruth_depth')}.png", packing.whole(single.depth[0] * 256)
    )
    packing.text(base / "intrinsics" / f"{stem.format('image')}.txt", [packing.numbers(single.k)])
    drive = Expected(
        truth=truth,
        name=f"train/{kitti_raw.DRIVE}/image_02",
        reason="depth in steps of 1/256 m",
        depth_step=lambda z: 1 / 512 + 0 * z,
        valid=known,
        pose_step=2e-6,
        settings={"split": "train"},
        damage=("train/**/0000000001.png",),
    )
    frame = replace(drive, truth=single, valid=None, name=f"val_selection_cropped/{stem.format('image')}", damage=(
        "**/groundtruth_depth/*.png",), settings={"split": "val"}, cameras=False)  # fmt: skip
    return [drive, frame]
