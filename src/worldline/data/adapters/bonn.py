"""Bonn RGB-D dynamic: the files of TUM RGB-D (rgb.txt, depth.txt at 5000 per metre, groundtruth.txt), one camera.

Ground truth is read as the camera's pose, as in TUM's format. The data set's page also gives a transform from its
motion-capture frames to the camera's, T_ros T_g T_ros T_m (from memory, no copy of the page was at hand): both readings
are tried, and the one under which depth agrees is taken. Lens distortion is not removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings, reprojection, tum
from worldline.data.clips import Sequence
from worldline.geometry import pose
from worldline.scene import Scene4D

INTRINSICS = (542.822841, 542.576870, 315.593520, 237.756098)
T_ROS = ((-1.0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 0, 0, 1))
T_M = ((1.0157, 0.1828, -0.2389, 0.0113), (0.0009, -0.8431, -0.6413, -0.0098), (-0.3009, 0.6147, -0.8085, 0.0111),
       (0, 0, 0, 1.0))  # fmt: skip
CAMERA, MARKER = "pose of the camera", "pose of the marker"
EVIDENCE = 17  # frames decoded for the decision


def sequences(root: Path) -> Iterator[Sequence]:
    """One per folder below root with rgb.txt, depth.txt and groundtruth.txt."""
    for folder in tum.folders(root):
        name = decode.name_of(folder, Path(root))
        yield from decode.listed(name, _listed, folder, name)


def _listed(folder: Path, name: str) -> Iterator[Sequence]:
    matches = tum.match(folder)
    yield Sequence(name=name, frames=len(matches.images), read=partial(_read, folder, matches))


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def marker_to_camera(poses: Float[Tensor, "T 4 4"]) -> Float[Tensor, "T 4 4"]:
    """cam2world of the poses of the marker that the motion capture follows."""
    ros, offset = (torch.tensor(values, dtype=torch.float64) for values in (T_ROS, T_M))
    u, _, vt = torch.linalg.svd(offset[:3, :3])  # it is given to four digits, and 6 % too large
    return ros @ poses @ ros @ pose.from_rt(u @ vt, offset[:3, 3])


def _read(folder: Path, matches: tum.Matches, start: int, stop: int) -> Scene4D:
    k = assemble.pinhole(*INTRINSICS)
    last = min(stop, start + EVIDENCE)
    files = [folder / name for name in matches.depths[start:last]]
    depth = decode.stack(encodings.read_depth_image, files, tum.UNITS_PER_METRE)
    readings = {CAMERA: matches.poses, MARKER: marker_to_camera(matches.poses)}
    relative = {name: pose.inverse(poses[start]) @ poses for name, poses in readings.items()}
    intrinsics = k.expand(last - start, 3, 3)
    scores = {name: reprojection.agreement(depth, intrinsics, poses[start:last]) for name, poses in relative.items()}
    verdict = reprojection.decide(f"poses of {folder.name}", CAMERA, scores)
    chosen = replace(matches, poses=relative[verdict.chosen])
    scene = tum.read_range("bonn", folder, k, chosen, start, stop)
    settings = {**scene.provenance.settings, "pose_reading": verdict.record()}
    return replace(scene, provenance=replace(scene.provenance, settings=settings))
