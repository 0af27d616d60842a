"""MotionCrafter's clips: float16 arrays one chunk per frame, an mp4, and a list; poses one way or the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing, trajscene
from adapters_writers.expected import Expected
from adapters_writers.truth import make


def write(root: Path, inverted: bool = False, hidden: bool = False) -> list[Expected]:
    truth = make(size=(48, 64))
    known = np.concatenate([truth.seen, np.zeros_like(truth.seen[:1])])
    moved = np.zeros_like(truth.flow)
    moved[:-1] = (truth.ahead - truth.local[:-1]) * truth.seen[..., None]
    path = packing.folder(root / "kubric/1234/00000_00004_data.hdf5")
    packing.hdf5(
        path,
        point_map=truth.local.astype(np.float16),
        valid_mask=truth.depth > 0,
        camera_pose=(truth.world2cam if inverted else truth.cam2world).astype(np.float16),
        scene_flow=moved.astype(np.float16),
        deform_mask=~known if hidden else known,
    )
    trajscene.video(path.with_name("00000_00004_rgb.mp4"), truth.rgb)
    base = "kubric/1234/00000_00004"
    packing.text(root / "meta_infos.txt", [f"{base}_rgb.mp4 {base}_data.hdf5 4"])
    return [
        Expected(
            truth=truth,
            name=base,
            reason="float16 throughout: 11 bits of points, flow and poses (here within 10 m of the world's middle)",
            depth_step=lambda z: z / 2**11 * 1.5,
            flow_step=lambda z: z / 2**10,
            flow_known=known,
            pose_step=2e-3,
            rgb_step=8,
            settings={
                "pose_reading.chosen": ("world to camera" if inverted else "camera to world")
                + "; x right, y down, z forward",
                "flow_mask_reading.chosen": f"true where flow is {'hidden' if hidden else 'known'}",
            },
            damage=("**/*_data.hdf5", "**/*_rgb.mp4"),
        )
    ]
