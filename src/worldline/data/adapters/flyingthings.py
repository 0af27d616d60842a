"""FlyingThings3D, Monkaa and Driving: stereo with disparity, its change, optical flow (pfm files) and cameras.

Z = 1050 / disparity (baseline 1; 450 in Driving's 15mm_focallength). camera_data.txt holds 4x4 camera-to-world matrices
with Blender axes (x right, y up, z back) by the data set's documentation; a published reader of Monkaa inverts them, so
the direction is checked by reprojection of the depth. Two layouts: the data set's own (frames_cleanpass, disparity,
disparity_change, optical_flow, camera_data), and the excerpt of one pair (image1.png, disp1.pfm, ...), whose poses are
unknown: it gives two scenes of one frame each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings, reprojection
from worldline.data.clips import Sequence
from worldline.geometry import camera
from worldline.scene import Scene4D

INTRINSICS = (1050.0, 1050.0, 479.5, 269.5)
WIDE_FOCAL_PX = 450.0
FPS = 24.0  # nominal
DOCUMENTED = (reprojection.DIRECTIONS[0], reprojection.OPENGL)


def sequences(root: Path) -> Iterator[Sequence]:
    """One per folder "left" below frames_cleanpass, or the two frames of the excerpt."""
    root = Path(root)
    if (root / "disp1.pfm").exists():
        for number in (1, 2):
            yield Sequence(name=f"{root.name}/{number}", frames=1, read=partial(_excerpt, root, number))
        return
    frames = encodings.require(root / "frames_cleanpass")
    for left in sorted(path for path in frames.rglob("left") if path.is_dir()):
        scene = left.parent.relative_to(frames)
        yield from decode.listed(scene.as_posix(), _listed, root, scene, left)


def _listed(root: Path, scene: Path, left: Path) -> Iterator[Sequence]:
    poses = decode.one(read_cameras, root / "camera_data" / scene / "camera_data.txt")
    numbers = [path.stem for path in sorted(left.glob("*.png")) if int(path.stem) in poses]
    read = partial(_read, root, scene, numbers)
    yield Sequence(name=scene.as_posix(), frames=len(numbers), read=read, facts={"synthetic": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _excerpt(root: Path, number: int, start: int, stop: int) -> Scene4D:
    disparity = decode.stack(encodings.read_pfm, [root / f"disp{number}.pfm"][start:stop])
    return assemble.scene_from_depth(
        dataset="flyingthings",
        sequence=f"{root.name}/{number}",
        images=decode.stack(encodings.read_rgb, [root / f"image{number}.png"][start:stop]),
        depth=_depth(disparity, INTRINSICS[0]),
        intrinsics=assemble.pinhole(*INTRINSICS),
        cam2world=torch.eye(4, dtype=torch.float64)[None],
        timestamps=assemble.even_times(1, FPS),
        settings={"synthetic": True},
    )


def _depth(disparity: Tensor, focal_px: float) -> Tensor:
    """Depth of a disparity, 0 where there is none."""
    known = disparity > 0
    return torch.where(known, focal_px / torch.where(known, disparity, torch.ones_like(disparity)), 0.0)


def read_cameras(path: Path) -> dict[int, Tensor]:
    """Left camera matrices, as stored, by frame number."""
    poses: dict[int, Tensor] = {}
    number = -1
    for line in encodings.require(path).read_text().splitlines():
        words = line.split()
        if words[:1] == ["Frame"]:
            number = int(words[1])
        elif words[:1] == ["L"]:
            poses[number] = torch.tensor([float(word) for word in words[1:]], dtype=torch.float64).reshape(4, 4)
    return poses


def _read(root: Path, scene: Path, numbers: list[str], start: int, stop: int) -> Scene4D:
    numbers = numbers[start:stop]
    stored = decode.one(read_cameras, root / "camera_data" / scene / "camera_data.txt")
    focal = WIDE_FOCAL_PX if "15mm_focallength" in scene.parts else INTRINSICS[0]
    k = assemble.pinhole(focal, focal, *INTRINSICS[2:])
    folder = root / "disparity" / scene / "left"
    disparity = decode.stack(encodings.read_pfm, [folder / f"{n}.pfm" for n in numbers])
    depth = _depth(disparity, focal)
    cam2world, verdict = reprojection.choose_poses(
        scene.as_posix(),
        torch.stack([stored[int(n)] for n in numbers]),
        depth,
        k.expand(len(numbers), 3, 3),
        DOCUMENTED,
        axes=(reprojection.OPENGL,),
    )
    flow = valid = None
    if (root / "optical_flow" / scene).is_dir() and len(numbers) > 1:
        ahead = partial(_ahead, root, scene, numbers, disparity, k, focal)
        flow, valid = assemble.world_flow(depth, k.expand(len(numbers), 3, 3), cam2world, ahead)
    images = [root / "frames_cleanpass" / scene / "left" / f"{n}.png" for n in numbers]
    return assemble.scene_from_depth(
        dataset="flyingthings",
        sequence=scene.as_posix(),
        images=decode.stack(encodings.read_rgb, images),
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(numbers), FPS),
        scene_flow=flow,
        flow_valid=valid,
        settings={"synthetic": True, "pose_reading": verdict.record()},
    )


def _ahead(
    root: Path, scene: Path, numbers: list[str], disparity: Tensor, k: Tensor, focal: float, t: int, local: Tensor
) -> tuple[Tensor, Tensor]:
    """Next positions in the next camera, Z' = f / (disparity + change) at the pixel moved by the optical flow."""
    name, into = numbers[t], Path(scene) / "into_future" / "left"
    change = decode.one(encodings.read_pfm, root / "disparity_change" / into / f"{name}.pfm")
    path = root / "optical_flow" / into / f"OpticalFlowIntoFuture_{name}_L.pfm"
    optical = decode.one(encodings.read_pfm, path)[..., :2].double()
    later = disparity[t] + decode.same_size(path, change, (local.shape[0], local.shape[1]))
    moved = camera.pixel_grid((local.shape[0], local.shape[1]), torch.float64) + optical
    return camera.unproject(moved, _depth(later, focal).double(), k), (later > 0) & optical.isfinite().all(-1)
