"""DeepDeform: real non-rigid RGB-D pairs with dense scene flow; color/*.jpg, depth/*.png (mm), scene_flow/*.sflow.

Camera poses are not known. The world here is the frame of the camera at each time: both cameras are the identity, and
whatever the camera moved is part of the scene flow S = X'(second camera) - X(first camera), in metres.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from worldline.data.adapters import assemble, encodings
from worldline.scene import Scene4D

FPS = 30.0


def convert(root: Path) -> Iterator[Scene4D]:
    """One scene of two frames per scene-flow file NAME_FIRST_SECOND.sflow."""
    root = Path(root)
    files = sorted(encodings.require(root / "scene_flow").glob("*.sflow"))
    if not files:
        raise FileNotFoundError(f"{root}/scene_flow has no .sflow file.")
    for path in files:
        yield _pair(root, path)


def _pair(root: Path, path: Path) -> Scene4D:
    name, first, second = path.stem.rsplit("_", 2)
    flow, flow_valid = encodings.read_deepdeform_flow(path)
    depth = torch.stack([encodings.read_depth_image(root / "depth" / f"{n}.png", 1000.0) for n in (first, second)])
    flow_valid = flow_valid & (depth[0] > 0)
    extras: dict[str, Tensor] = {}
    mask = root / "mask" / f"{first}_{name}.png"
    if mask.exists():  # object of interest, of the first frame
        inside = encodings.read_depth_image(mask, 1.0)
        extras["object_id"] = torch.stack([(inside > 0).long(), torch.zeros_like(inside, dtype=torch.long)])
    optical = root / "optical_flow" / f"{path.stem}.oflow"
    if optical.exists():
        pixels, known = encodings.read_deepdeform_flow(optical)
        extras["optical_flow"] = torch.stack([pixels, torch.zeros_like(pixels)])
        extras["optical_flow_valid"] = torch.stack([known, torch.zeros_like(known)])
    return assemble.scene_from_depth(
        dataset="deepdeform",
        sequence=path.stem,
        images=[encodings.read_rgb(root / "color" / f"{n}.jpg") for n in (first, second)],
        depth=depth,
        intrinsics=encodings.read_numbers(root / "intrinsics.txt")[:3, :3],
        cam2world=torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        timestamps=torch.tensor([int(first), int(second)], dtype=torch.float64) / FPS,
        scene_flow=torch.stack([flow, torch.zeros_like(flow)]) * torch.stack([flow_valid, flow_valid])[..., None],
        flow_valid=torch.stack([flow_valid, torch.zeros_like(flow_valid)]),
        extras=extras,
        settings={"camera_motion": "unknown; part of the scene flow", "first_frame": int(first)},
    )
