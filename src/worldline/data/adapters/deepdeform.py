"""DeepDeform: real non-rigid RGB-D pairs with dense scene flow; color/*.jpg, depth/*.png (mm), scene_flow/*.sflow.

Camera poses are not known. The world here is the frame of the camera at each time: both cameras are the identity, and
whatever the camera moved is part of the scene flow S = X'(second camera) - X(first camera), in metres.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings
from worldline.data.clips import Sequence
from worldline.scene import Scene4D

FPS = 30.0


def sequences(root: Path) -> Iterator[Sequence]:
    """One pair per file scene_flow/NAME_FIRST_SECOND.sflow below root."""
    root = Path(root)
    files = sorted(path for path in root.rglob("*.sflow") if path.parent.name == "scene_flow")
    if not files:
        raise FileNotFoundError(f"No scene_flow/*.sflow below {root}; give the root of DeepDeform.")
    for path in files:
        folder = path.parents[1]
        inside = "" if folder.resolve() == root.resolve() else f"{decode.name_of(folder, root)}/"
        name = f"{inside}{path.stem}"
        yield Sequence(name=name, frames=2, read=partial(_pair, folder, path, name), cuttable=False)


def convert(root: Path) -> Iterator[Scene4D]:
    """Every pair."""
    return clips.scenes(sequences(root))


def _pair(root: Path, path: Path, title: str, start: int, stop: int) -> Scene4D:
    name, first, second = path.stem.rsplit("_", 2)
    flow, flow_valid = decode.one(encodings.read_deepdeform_flow, path)
    depths = [root / "depth" / f"{n}.png" for n in (first, second)]
    depth = decode.stack(encodings.read_depth_image, depths, 1000.0)
    flow_valid = flow_valid & (depth[0] > 0)
    extras: dict[str, Tensor] = {}
    mask = root / "mask" / f"{first}_{name}.png"
    if mask.exists():  # object of interest, of the first frame
        inside = decode.one(encodings.read_depth_image, mask, 1.0)
        extras["object_id"] = torch.stack([(inside > 0).long(), torch.zeros_like(inside, dtype=torch.long)])
    optical = root / "optical_flow" / f"{path.stem}.oflow"
    if optical.exists():
        pixels, known = decode.one(encodings.read_deepdeform_flow, optical)
        extras["optical_flow"] = torch.stack([pixels, torch.zeros_like(pixels)])
        extras["optical_flow_valid"] = torch.stack([known, torch.zeros_like(known)])
    return assemble.scene_from_depth(
        dataset="deepdeform",
        sequence=title,
        images=decode.stack(encodings.read_rgb, [root / "color" / f"{n}.jpg" for n in (first, second)]),
        depth=depth,
        intrinsics=decode.one(encodings.read_numbers, root / "intrinsics.txt")[:3, :3],
        cam2world=torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        timestamps=torch.tensor([int(first), int(second)], dtype=torch.float64) / FPS,
        scene_flow=torch.stack([flow, torch.zeros_like(flow)]) * torch.stack([flow_valid, flow_valid])[..., None],
        flow_valid=torch.stack([flow_valid, torch.zeros_like(flow_valid)]),
        extras=extras,
        settings={"camera_motion": "unknown; part of the scene flow", "first_frame": int(first)},
    )
