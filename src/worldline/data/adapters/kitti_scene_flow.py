"""KITTI scene flow 2015: training/{image_2, disp_occ_0, disp_occ_1, flow_occ, obj_map, calib_cam_to_cam}.

Two frames per scene (%06d_10 and %06d_11). disp_occ_1 is the disparity at the second frame of what the first one sees,
so the next position is known without the second frame's depth, which is not given. Disparity is v / 256 (0 unknown),
flow (64 u + 32768, 64 v + 32768, valid). Camera poses are not given: both cameras are the identity, the car's motion
is part of the scene flow, as in DeepDeform.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings, kitti
from worldline.data.clips import Sequence, reading
from worldline.geometry import camera
from worldline.scene import Scene4D

FPS = 10.0


def sequences(root: Path) -> Iterator[Sequence]:
    """One per pair of images."""
    root = Path(root)
    base = root / "training" if (root / "training").is_dir() else root
    firsts = sorted((base / "disp_occ_0").glob("*_10.png"))
    if not firsts:
        raise FileNotFoundError(f"{root} has no training/disp_occ_0/*_10.png; give the root of KITTI scene flow 2015.")
    for path in firsts:
        name = path.stem.removesuffix("_10")
        yield Sequence(name=name, frames=2, read=partial(_read, base, name), cuttable=False)


def convert(root: Path) -> Iterator[Scene4D]:
    """Every pair."""
    return clips.scenes(sequences(root))


def _ids(path: Path) -> Tensor:
    """Object numbers, 0 for the background."""
    from PIL import Image

    with Image.open(encodings.require(path)) as image:
        return torch.from_numpy(np.array(image)).long()


def _read(base: Path, name: str, start: int, stop: int) -> Scene4D:
    table = base / "calib_cam_to_cam" / f"{name}.txt"
    with reading(table):
        found = kitti.read_calibration(table)
        left, right = (found[f"P_rect_{number}"].reshape(3, 4) for number in ("02", "03"))
    k, baseline_px = left[:, :3], float(left[0, 3] - right[0, 3])
    images = decode.stack(encodings.read_rgb, [base / "image_2" / f"{name}_{n}.png" for n in ("10", "11")])
    size = (images.shape[1], images.shape[2])

    def file(kind: str) -> Path:
        return base / kind / f"{name}_10.png"

    disparity, known = decode.one(encodings.read_kitti_disparity, file("disp_occ_0"))
    later, known_later = decode.one(encodings.read_kitti_disparity, file("disp_occ_1"))
    optical, known_flow = decode.one(encodings.read_kitti_flow, file("flow_occ"))
    for path, value in ((file("disp_occ_0"), disparity), (file("disp_occ_1"), later), (file("flow_occ"), optical)):
        decode.same_size(path, value, size)
    away = lambda d, where: torch.where(where, baseline_px / d.double().clamp(min=1e-3), 0.0)  # noqa: E731
    depth = torch.stack([away(disparity, known), torch.zeros(size, dtype=torch.float64)])
    moved = camera.pixel_grid(size, torch.float64) + optical.double()
    ahead = camera.unproject(moved, away(later, known_later), k)
    still = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    seen = known & known_later & known_flow
    flow, valid = assemble.world_flow(depth, k.expand(2, 3, 3), still, lambda t, local: (ahead, seen))
    extras = {}
    if file("obj_map").exists():
        ids = decode.one(_ids, file("obj_map"))
        extras["object_id"] = torch.stack([ids, torch.zeros_like(ids)])
    return assemble.scene_from_depth(
        dataset="kitti_scene_flow",
        sequence=name,
        images=images,
        depth=depth.float(),
        intrinsics=k,
        cam2world=still,
        timestamps=assemble.even_times(2, FPS),
        scene_flow=flow,
        flow_valid=valid,
        extras=extras,
        settings={"camera_motion": "unknown; part of the scene flow", "second_depth": "not given"},
    )
