"""FlyingThings3D and Monkaa: synthetic stereo with disparity, disparity change, optical flow and cameras (pfm files).

Z = 1050 / disparity (baseline 1). camera_data.txt holds 4x4 cam2world with Blender axes (x right, y up, z back).
Two layouts: the data set's own (frames_cleanpass, disparity, disparity_change, optical_flow, camera_data), and the
excerpt of one pair (image1.png, disp1.pfm, ...), whose poses are unknown: it gives two scenes of one frame each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from worldline.data.adapters import assemble, encodings
from worldline.geometry import camera, pointmap, pose, sceneflow
from worldline.scene import Scene4D

INTRINSICS = (1050.0, 1050.0, 479.5, 269.5)
FPS = 24.0  # nominal
BLENDER = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence below root in the data set's layout, or the frames of the excerpt."""
    root = Path(root)
    if (root / "disp1.pfm").exists():
        yield from _excerpt(root)
        return
    frames = encodings.require(root / "frames_cleanpass")
    for left in sorted(path for path in frames.rglob("left") if path.is_dir()):
        yield _sequence(root, left.parent.relative_to(frames))


def _excerpt(root: Path) -> Iterator[Scene4D]:
    for number in (1, 2):
        disparity = encodings.read_pfm(root / f"disp{number}.pfm")
        yield assemble.scene_from_depth(
            dataset="flyingthings",
            sequence=f"{root.name}/{number}",
            images=[encodings.read_rgb(root / f"image{number}.png")],
            depth=_depth(disparity)[None],
            intrinsics=assemble.pinhole(*INTRINSICS),
            cam2world=torch.eye(4, dtype=torch.float64)[None],
            timestamps=assemble.even_times(1, FPS),
        )


def _depth(disparity: Tensor) -> Tensor:
    """Depth of a disparity, 0 where there is none."""
    known = disparity > 0
    return torch.where(known, INTRINSICS[0] / torch.where(known, disparity, torch.ones_like(disparity)), 0.0)


def read_cameras(path: Path) -> dict[int, Tensor]:
    """Left cam2world with OpenCV axes by frame number."""
    poses: dict[int, Tensor] = {}
    number = -1
    for line in encodings.require(path).read_text().splitlines():
        words = line.split()
        if words[:1] == ["Frame"]:
            number = int(words[1])
        elif words[:1] == ["L"]:
            values = torch.tensor([float(word) for word in words[1:]], dtype=torch.float64)
            poses[number] = values.reshape(4, 4) @ BLENDER
    return poses


def _sequence(root: Path, scene: Path) -> Scene4D:
    poses = read_cameras(root / "camera_data" / scene / "camera_data.txt")
    images = sorted((root / "frames_cleanpass" / scene / "left").glob("*.png"))
    images = [path for path in images if int(path.stem) in poses]
    numbers = [path.stem for path in images]
    disparity = torch.stack([encodings.read_pfm(root / "disparity" / scene / "left" / f"{n}.pfm") for n in numbers])
    cam2world = torch.stack([poses[int(n)] for n in numbers])
    flow, valid = _world_flow(root, scene, numbers, disparity, pose.relative_to_first(cam2world))
    return assemble.scene_from_depth(
        dataset="flyingthings",
        sequence=str(scene),
        images=[encodings.read_rgb(path) for path in images],
        depth=_depth(disparity),
        intrinsics=assemble.pinhole(*INTRINSICS),
        cam2world=cam2world,
        timestamps=assemble.even_times(len(images), FPS),
        scene_flow=flow,
        flow_valid=valid,
    )


def _world_flow(
    root: Path, scene: Path, numbers: list[str], disparity: Tensor, cam2world: Tensor
) -> tuple[Tensor, Tensor]:
    """World displacement of every pixel: Z' = f / (disparity + change) at the pixel moved by the optical flow."""
    size = (disparity.shape[1], disparity.shape[2])
    grid, k = camera.pixel_grid(size), assemble.pinhole(*INTRINSICS).float()
    total, valid = torch.zeros(len(numbers), *size, 3), torch.zeros(len(numbers), *size, dtype=torch.bool)
    for t, number in enumerate(numbers[:-1]):
        change = root / "disparity_change" / scene / "into_future" / "left" / f"{number}.pfm"
        optical = root / "optical_flow" / scene / "into_future" / "left" / f"OpticalFlowIntoFuture_{number}_L.pfm"
        ahead = disparity[t] + encodings.read_pfm(change)
        moved = grid + encodings.read_pfm(optical)[..., :2]
        here = pointmap.from_depth(_depth(disparity[t]), k)
        there = camera.unproject(moved, _depth(ahead), k)
        valid[t] = (disparity[t] > 0) & (ahead > 0) & moved.isfinite().all(-1)
        flow = sceneflow.camera_to_world_flow(here, there - here, cam2world[t], cam2world[t + 1])
        total[t] = torch.where(valid[t, ..., None], flow, torch.zeros_like(flow))
    return total, valid
