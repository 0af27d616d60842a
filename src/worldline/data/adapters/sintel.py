"""MPI-Sintel: training/{clean,final,depth,camdata_left,flow,occlusions,invalid}/<sequence>/frame_%04d.*

Cameras are world-to-camera. There is no true scene flow: where the pixel is not occluded, the next position is the next
frame's surface at the pixel moved by the optical flow, so it is only as exact as the depth grid, and
not known beside the depth steps of that frame (data-formats.md 4.4).
The sky is a surface far away; beyond SKY_METRES nothing is valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings, tracks
from worldline.data.clips import Sequence
from worldline.geometry import camera, pointmap, pose, sceneflow
from worldline.scene import Scene4D

FPS = 24.0
SKY_METRES = 1000.0
EDGE = 0.2  # relative depth step that parts two surfaces
PASSES = ("clean", "final")


def sequences(root: Path) -> Iterator[Sequence]:
    """One per rendering pass and sequence."""
    root = Path(root)
    base = root / "training" if (root / "training").is_dir() else root
    found = False
    for render in PASSES:
        for folder in sorted(path for path in (base / render).glob("*") if path.is_dir()):
            found = True
            images = sorted(folder.glob("frame_*.png"))
            yield Sequence(
                name=f"{render}/{folder.name}",
                frames=len(images),
                read=partial(_read, base, render, folder.name, [path.stem for path in images]),
                facts={"synthetic": True},
            )
    if not found:
        raise FileNotFoundError(f"{root} has no training/clean or training/final; give the root of MPI-Sintel.")


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def read_mask(path: Path) -> Tensor:
    """True where a mask image is not black."""
    return encodings.read_rgb(path).amax(-1) > 0


def _lands_on_edge(optical: Tensor, depth: Tensor) -> Tensor:
    """Pixels that move to beside a depth step of the next frame, where the surface read there may be another one."""
    size = (depth.shape[0], depth.shape[1])
    row, column, inside = tracks.pixels((camera.pixel_grid(size) + optical).reshape(-1, 2), size)
    return (inside & pointmap.depth_edges(depth, EDGE)[row, column]).reshape(size)


def _read(base: Path, render: str, name: str, stems: list[str], start: int, stop: int) -> Scene4D:
    stems = stems[start:stop]

    def files(kind: str, suffix: str, count: int = len(stems)) -> list[Path]:
        return [base / kind / name / f"{stem}{suffix}" for stem in stems[:count]]

    depth = decode.stack(encodings.read_dpt, files("depth", ".dpt"))
    depth = torch.where(depth < SKY_METRES, depth, torch.zeros_like(depth))
    cameras = [decode.one(encodings.read_sintel_camera, path) for path in files("camdata_left", ".cam")]
    k, cam2world = torch.stack([c[0] for c in cameras]), torch.stack([c[1] for c in cameras])
    flow = valid = None
    if (base / "flow" / name).is_dir():
        flow, valid = torch.zeros(*depth.shape, 3), torch.zeros(depth.shape, dtype=torch.bool)
        relative = pose.relative_to_first(cam2world)
        solid = (depth > 0) & depth.isfinite()
        points = pointmap.to_world(pointmap.from_depth(torch.where(solid, depth, 0.0), k), relative)
        for t in range(len(stems) - 1):
            optical, known = decode.one(encodings.read_flo, files("flow", ".flo")[t])
            known = known & solid[t]
            for kind in ("occlusions", "invalid"):
                if (base / kind / name).is_dir():
                    known &= ~decode.one(read_mask, files(kind, ".png")[t])
            known &= ~_lands_on_edge(optical, depth[t + 1])
            flow[t], valid[t] = sceneflow.from_optical_flow(points[t], points[t + 1], optical, known, solid[t + 1])
    return assemble.scene_from_depth(
        dataset="sintel",
        sequence=f"{render}/{name}",
        images=decode.stack(encodings.read_rgb, files(render, ".png")),
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(stems), FPS),
        scene_flow=flow,
        flow_valid=valid,
        settings={"synthetic": True, "scene_flow": "from optical flow and the next frame's depth"},
    )
