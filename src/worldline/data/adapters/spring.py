"""Spring: <split>/<id>/{frame_left, disp1_left, disp2_FW_left, flow_FW_left}/*_%04d and cam_data/*.txt, from frame 1.

Depth is 0.065 fx / disparity. Disparity and flow are HDF5 files of twice the image's size whose values are in pixels of
the image: every second sample is taken. extrinsics.txt is world-to-camera. disp2_FW is the disparity at t+1 of the
surface seen at t, so that the next position is known without looking into the next frame (data-formats.md 4.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings
from worldline.data.clips import Sequence
from worldline.geometry import camera, pose
from worldline.scene import Scene4D

FPS = 24.0
BASELINE_METRES = 0.065


def sequences(root: Path) -> Iterator[Sequence]:
    """One per folder with frame_left below root."""
    containers.require_libraries("h5py")
    folders = sorted(path.parent for path in Path(root).rglob("frame_left") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"No frame_left folder below {root}; give the root of Spring.")
    for folder in folders:
        name = decode.name_of(folder, Path(root))
        yield Sequence(
            name=name,
            frames=len(list((folder / "frame_left").glob("frame_left_*.png"))),
            read=partial(_read, folder, name),
            facts={"synthetic": True},
        )


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def read_map(path: Path, key: str, size: tuple[int, int]) -> Tensor:
    """A disparity or flow map at the image's size: every second sample of a map of twice that size."""
    (values,) = containers.read_hdf5(path, key)
    step = values.shape[0] // size[0]
    if (values.shape[0], values.shape[1]) != (step * size[0], step * size[1]) or step not in (1, 2):
        raise ValueError(f"{path} has the size {values.shape[:2]}, not once or twice that of the image, {size}.")
    return torch.from_numpy(values[::step, ::step].astype("float32"))


def _read(folder: Path, name: str, start: int, stop: int) -> Scene4D:
    def files(kind: str, suffix: str) -> list[Path]:
        return [folder / kind / f"{kind}_{t + 1:04d}{suffix}" for t in range(start, stop)]

    images = decode.stack(encodings.read_rgb, files("frame_left", ".png"))
    size = (images.shape[1], images.shape[2])

    def table(name: str) -> Tensor:
        path = folder / "cam_data" / name
        return decode.rows(path, decode.one(encodings.read_numbers, path), start, stop)

    k = torch.stack([assemble.pinhole(*row[:4].tolist()) for row in table("intrinsics.txt")])
    world2cam = table("extrinsics.txt")
    cam2world = pose.relative_to_first(torch.linalg.inv(world2cam.reshape(-1, 4, 4)))
    depth = _depth(decode.stack(read_map, files("disp1_left", ".dsp5"), "disparity", size), k)
    flow = valid = None
    if (folder / "flow_FW_left").is_dir() and (folder / "disp2_FW_left").is_dir() and stop - start > 1:
        later, moving = files("disp2_FW_left", ".dsp5"), files("flow_FW_left", ".flo5")
        grid = camera.pixel_grid(size, torch.float64)

        def ahead(t: int, local: Tensor) -> tuple[Tensor, Tensor]:
            disparity = decode.one(read_map, later[t], "disparity", size)
            optical = decode.one(read_map, moving[t], "flow", size).double()
            z = _depth(disparity[None], k[t : t + 1])[0].double()
            return camera.unproject(grid + optical, z, k[t + 1]), (z > 0) & optical.isfinite().all(-1)

        flow, valid = assemble.world_flow(depth, k, cam2world, ahead)
    return assemble.scene_from_depth(
        dataset="spring",
        sequence=name,
        images=images,
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(stop - start, FPS),
        scene_flow=flow,
        flow_valid=valid,
        settings={"synthetic": True, "first_frame": start + 1},
    )


def _depth(disparity: Tensor, k: Tensor) -> Tensor:
    """Depth in metres, 0 where the disparity is 0 (sky) or NaN."""
    known = disparity > 0
    scale = (BASELINE_METRES * k[:, 0, 0]).float()[:, None, None]
    return torch.where(known, scale / torch.where(known, disparity, torch.ones_like(disparity)), 0.0)
