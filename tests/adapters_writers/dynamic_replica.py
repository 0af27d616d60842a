"""Dynamic Replica: float16 bits in png, PyTorch3D cameras (rows, x left, y up), gzipped JSON, .pth tracks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default


def write(root: Path, isotropic: bool = False) -> list[Expected]:
    truth = default()
    base, records = root / "train", []
    height, width = truth.depth.shape[1:]
    solid = (truth.depth[0] > 0).reshape(-1)
    for t in range(len(truth.depth)):
        name = f"abc_left/{{}}/abc_left-{t:04d}"
        kinds = (("images", ".png"), ("depths", ".geometric.png"), ("trajectories", ".pth"))
        image, depth, track = (name.format(kind) + end for kind, end in kinds)
        packing.png(base / image, truth.rgb[t])
        packing.png(base / depth, truth.depth[t].astype(np.float16).view(np.uint16))
        points = torch.from_numpy(truth.tracks[t].reshape(-1, 3)[solid]).float()
        seen = torch.from_numpy(truth.visible[t].reshape(-1)[solid])
        torch.save(
            {"traj_3d_world": points, "traj_2d": points[:, :2], "verts_inds_vis": seen}, packing.folder(base / track)
        )
        world2cam = truth.world2cam[t]
        half = np.array([min(width, height)] * 2 if isotropic else [width, height]) / 2
        edge = truth.k[:2, 2] + 0.5  # the principal point counted from the image's corner
        records.append(
            {
                "sequence_name": "abc", "camera_name": "left", "frame_number": t, "frame_timestamp": t / 30,
                "image": {"path": image, "size": [height, width]}, "depth": {"path": depth, "scale_adjustment": 1.0},
                "mask": None, "trajectories": {"path": track},
                "viewpoint": {
                    "R": (world2cam[:3, :3].T * np.array([-1, -1, 1])).tolist(),
                    "T": (world2cam[:3, 3] * np.array([-1, -1, 1])).tolist(),
                    "focal_length": (np.diag(truth.k)[:2] / half).tolist(),
                    "principal_point": ((np.array([width, height]) / 2 - edge) / half).tolist(),
                    "intrinsics_format": "ndc_isotropic" if isotropic else "ndc_norm_image_bounds",
                },
            }
        )  # fmt: skip
    packing.dump(base / "frame_annotations_train.jgz", records[::-1], zipped=True)
    return [
        Expected(
            truth=truth,
            name="train/abc/left",
            reason="tracks are up to half a pixel beside their pixel, on a turning ball; depth is float16: 11 bits",
            depth_step=lambda z: z / 2**11,
            flow_step=lambda z: 0.005 * z,
            flow_known=truth.depth > 0,
            flow_at_least=True,
            settings={"split": "train"},
            tracks=(
                truth.tracks.reshape(len(truth.depth), -1, 3)[:, solid],
                truth.visible.reshape(len(truth.depth), -1)[:, solid],
            ),
            damage=("**/*0001.geometric.png", "**/*0002.pth", "**/*0003.png"),
        )
    ]
