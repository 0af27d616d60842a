"""TartanAir: image_left/*.png, depth_left/*.npy (z-depth, metres), pose_left.txt (NED axes, cam2world).

The NED camera looks along x, with y to the right and z down: x_cv = M x_ned. Negating tz and qz instead, as some public
converters do, is wrong (data-formats.md 4.3). Optical flow (flow/*_flow.npy) was computed from depth and camera motion,
and its mask marks occlusions and moving objects (the data set's data_type.md): what is not masked stands still, so the
world scene flow there is zero. The share of the flow that depth and poses explain is in the provenance.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, reprojection
from worldline.data.clips import DamagedFile, Sequence
from worldline.geometry import pose
from worldline.scene import Scene4D

CAMERA_FROM_NED = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
INTRINSICS = (320.0, 320.0, 320.0, 240.0)
FPS = 10.0  # nominal: the data set has no times
EVIDENCE = 8  # frames whose optical flow is compared
SKY_METRES = 1000.0  # the renderer writes a huge depth (10000) into the sky


def sequences(root: Path) -> Iterator[Sequence]:
    """One per folder below root with image_left, depth_left and pose_left*.txt."""
    folders = sorted(path.parent for path in Path(root).rglob("image_left") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"No image_left folder below {root}; give the folder of a TartanAir environment.")
    for folder in folders:
        name = decode.name_of(folder, Path(root))
        numbers = sorted(int(path.name.split("_")[0]) for path in (folder / "image_left").glob("*_left.png"))
        yield Sequence(
            name=name, frames=len(numbers), read=partial(_read, folder, name, numbers), facts={"synthetic": True}
        )


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _poses(folder: Path, numbers: list[int]) -> Tensor:
    """NED poses of all frames of the folder."""
    tables = sorted(folder.glob("pose_left*.txt"))
    if not tables:
        raise DamagedFile(folder / "pose_left.txt", "the file is missing")
    rows = decode.one(encodings.read_numbers, tables[0])
    if len(rows) != len(numbers):  # a whole sequence's poses beside some of its frames: pick by frame number
        rows = decode.rows(tables[0], rows, 0, max(numbers) + 1)[numbers]
    return encodings.poses_from_translation_xyzw(rows)


def _read(folder: Path, name: str, numbers: list[int], start: int, stop: int) -> Scene4D:
    ned = _poses(folder, numbers)[start:stop]
    chosen = numbers[start:stop]
    swap = pose.from_rt(torch.tensor(CAMERA_FROM_NED, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    cam2world = ned @ pose.inverse(swap)
    stored = decode.stack(containers.read_npy, [folder / "depth_left" / f"{n:06d}_left_depth.npy" for n in chosen])
    depth = stored.float()
    depth = torch.where((depth > 0) & (depth < SKY_METRES), depth, torch.zeros_like(depth))
    k = assemble.pinhole(*INTRINSICS)
    settings: dict[str, object] = {"synthetic": True, "first_frame": chosen[0]}
    flow = valid = None
    if (folder / "flow").is_dir() and len(chosen) > 1:
        stems = [f"{a:06d}_{b:06d}" for a, b in zip(chosen[:-1], chosen[1:], strict=True)]
        optical = decode.stack(containers.read_npy, [folder / "flow" / f"{stem}_flow.npy" for stem in stems])
        hidden = decode.stack(containers.read_npy, [folder / "flow" / f"{stem}_mask.npy" for stem in stems]) != 0
        known = ~hidden & (depth[:-1] > 0)
        valid = torch.cat([known, torch.zeros_like(known[:1])])
        flow = torch.zeros(*depth.shape, 3)
        relative = pose.relative_to_first(cam2world)
        count = min(EVIDENCE, len(known))
        to_next = pose.inverse(relative[1 : count + 1]) @ relative[:count]
        ahead = pose.transform(to_next, reprojection.points_of(depth[:count], k))
        flows = optical[:count].double()
        share = reprojection.flow_agreement(ahead, flows, known[:count], k.expand(count, 3, 3), 1.0)
        settings |= reprojection.explained(name, [share])
    return assemble.scene_from_depth(
        dataset="tartanair",
        sequence=name,
        images=decode.stack(encodings.read_rgb, [folder / "image_left" / f"{n:06d}_left.png" for n in chosen]),
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(chosen), FPS),
        scene_flow=flow,
        flow_valid=valid,
        settings=settings,
    )
