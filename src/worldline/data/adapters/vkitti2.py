"""Virtual KITTI 2: SceneXX/<variation>/frames/{rgb,depth,forwardFlow,forwardSceneFlow}/Camera_{0,1}, and text tables.

Depth is a 16-bit png of planar centimetres (above 65500: sky); extrinsic.txt is world-to-camera; scene flow is a 16-bit
png, S = (2/65535 rgb - 1) 10 metres, and optical flow u = (2/65535 R - 1)(W - 1), v likewise with H - 1, B = 0 unknown
(data-formats.md 4.2). In which frame the scene flow is given is not documented: S = X'(camera t+1) - X(camera t) is
assumed unless the optical flow, which the moved points must project to, says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings, reprojection
from worldline.data.clips import Sequence
from worldline.geometry import camera, pose
from worldline.scene import Scene4D

FPS = 10.0
SKY_CENTIMETRES = 65500
REACH_METRES = 10.0  # the largest scene flow the png can hold
TELLING_PX, TELLING_PIXELS = 0.75, 10
EVIDENCE = 8  # frames looked at for the decision
FRAMES = ("from camera t to camera t+1", "in camera t, without camera motion", "in the world")


def sequences(root: Path) -> Iterator[Sequence]:
    """One per scene, variation and camera."""
    found = False
    for folder in sorted(Path(root).glob("Scene*/*/frames/rgb/Camera_*")):
        found = True
        variation = folder.parents[2]
        yield Sequence(
            name=f"{variation.parent.name}/{variation.name}/{folder.name}",
            frames=len(list(folder.glob("rgb_*.jpg"))),
            read=partial(_read, variation, folder.name),
            facts={"synthetic": True},
        )
    if not found:
        raise FileNotFoundError(f"{root} has no Scene*/*/frames/rgb/Camera_*; give the root of Virtual KITTI 2.")


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def read_scene_flow(path: Path) -> Tensor:
    """Scene flow [H, W, 3] in metres; NaN where it is cut off at the ends of the range."""
    stored = encodings.read_rgb16(path)
    flow = (stored.float() * (2 / 65535) - 1) * REACH_METRES
    clipped = ((stored == 0) | (stored == 65535)).any(-1, keepdim=True)
    return torch.where(clipped, torch.full_like(flow, torch.nan), flow)


def read_flow(path: Path) -> Tensor:
    """Optical flow [H, W, 2] in pixels; NaN where it is not known."""
    stored = encodings.read_rgb16(path).float()
    span = torch.tensor([stored.shape[1] - 1, stored.shape[0] - 1], dtype=torch.float32)
    flow = (stored[..., :2] * (2 / 65535) - 1) * span
    return torch.where(stored[..., 2:] > 0, flow, torch.full_like(flow, torch.nan))


def _table(path: Path, number: int) -> Tensor:
    """Rows of a table for one camera, by frame: the columns after "frame cameraID"."""
    rows = torch.from_numpy(np.loadtxt(encodings.require(path), skiprows=1, ndmin=2))
    rows = rows[rows[:, 1] == number]
    return rows[rows[:, 0].argsort(), 2:]


def _read(variation: Path, view: str, start: int, stop: int) -> Scene4D:
    def files(kind: str, name: str) -> list[Path]:
        return [variation / "frames" / kind / view / name.format(t) for t in range(start, stop)]

    number = int(view.removeprefix("Camera_"))

    def table(name: str) -> Tensor:
        return decode.rows(variation / name, decode.one(_table, variation / name, number), start, stop)

    k = torch.stack([assemble.pinhole(*row[:4].tolist()) for row in table("intrinsic.txt")])
    cam2world = torch.linalg.inv(table("extrinsic.txt").reshape(-1, 4, 4))
    depth = decode.stack(encodings.read_depth_image, files("depth", "depth_{:05d}.png"), 100.0)
    depth = torch.where(depth <= SKY_CENTIMETRES / 100, depth, torch.zeros_like(depth))
    flow = valid = None
    settings: dict[str, object] = {"synthetic": True, "first_frame": start}
    if (variation / "frames" / "forwardSceneFlow" / view).is_dir() and stop - start > 1:
        moves = files("forwardSceneFlow", "sceneFlow_{:05d}.png")
        flows = (
            files("forwardFlow", "flow_{:05d}.png") if (variation / "frames" / "forwardFlow" / view).is_dir() else []
        )
        verdict = _decide(str(variation), moves, flows, depth, k, cam2world)

        def ahead(t: int, local: Tensor) -> tuple[Tensor, Tensor]:
            moved = decode.one(read_scene_flow, moves[t]).double()
            return _readings(local, moved, cam2world[t], cam2world[t + 1])[verdict.chosen], moved.isfinite().all(-1)

        flow, valid = assemble.world_flow(depth, k, pose.relative_to_first(cam2world), ahead)
        settings["scene_flow_frame"] = verdict.record()
    return assemble.scene_from_depth(
        dataset="vkitti2",
        sequence=f"{variation.parent.name}/{variation.name}/{view}",
        images=decode.stack(encodings.read_rgb, files("rgb", "rgb_{:05d}.jpg")),
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(stop - start, FPS),
        scene_flow=flow,
        flow_valid=valid,
        settings=settings,
    )


def _readings(local: Tensor, moved: Tensor, here: Tensor, there: Tensor) -> dict[str, Tensor]:
    """Next positions in the next camera, by the frame that the scene flow is given in."""
    to_next = pose.inverse(there)
    return {
        FRAMES[0]: local + moved,
        FRAMES[1]: pose.transform(to_next @ here, local + moved),
        FRAMES[2]: pose.transform(to_next, pose.transform(here, local) + moved),
    }


def _decide(
    what: str, moves: list[Path], flows: list[Path], depth: Tensor, k: Tensor, cam2world: Tensor
) -> reprojection.Verdict:
    """The frame of the scene flow under which its first frames project to the optical flow."""
    count = min(EVIDENCE, len(depth) - 1) if flows else 0
    found: dict[str, list[Tensor]] = {name: [] for name in FRAMES}
    optical, known = [], []
    for t in range(count):
        moved = decode.one(read_scene_flow, moves[t]).double()
        optical.append(decode.one(read_flow, flows[t]).double())
        known.append((depth[t] > 0) & moved.isfinite().all(-1) & optical[t].isfinite().all(-1))
        local = reprojection.points_of(depth[t : t + 1], k[t])[0]
        for name, value in _readings(local, moved, cam2world[t], cam2world[t + 1]).items():
            found[name].append(value)
    if not count:
        return reprojection.decide(f"scene flow of {what}", FRAMES[0], {})
    readings, after = {name: torch.stack(values) for name, values in found.items()}, k[1 : count + 1]
    masks = [torch.stack(known)]
    # what stands still has no flow in the last two frames of reference alike: only what moves tells them apart
    apart = camera.project(readings[FRAMES[1]], after) - camera.project(readings[FRAMES[2]], after)
    telling = masks[0] & (apart.norm(dim=-1) > TELLING_PX)
    if int(telling.sum()) >= TELLING_PIXELS:
        masks.append(telling)
    scores = {
        name: tuple(reprojection.flow_agreement(value, torch.stack(optical), mask, after) for mask in masks)
        for name, value in readings.items()
    }
    return reprojection.decide(f"scene flow of {what}", FRAMES[0], scores)
