"""Which reading of a data set's numbers is right: the one under which its frames agree.

Where documents disagree (is a matrix camera-to-world or its inverse, is depth planar or along the ray), every reading
is tried on the frames at hand: the pixels of one frame are moved into another and compared with its depth. The
documented reading is kept unless another agrees clearly better; what was tried and found goes into the provenance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry import camera, pointmap, pose

RTOL = 0.02  # depths within this share of each other agree
MARGIN = 0.05  # how much better another reading must agree than the documented one
EXPLAINED = 0.8  # share of optical flow below which something is wrong
GAPS = (1, 2, 4, 8, 16)  # frames 0 and these are compared
PIXELS = 6000  # of a frame, on a grid: enough for a share
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was decided.

    Attributes:
        chosen: the reading used.
        documented: the one the documents give.
        scores: how well the evidence agrees, by reading, 0 to 1 in each of one or several respects; empty if there was
            no evidence.
    """

    chosen: str
    documented: str
    scores: Mapping[str, tuple[float, ...]]

    @property
    def decided(self) -> bool:
        """Whether the data tell the chosen reading from all others."""
        others = [math.prod(score) for name, score in self.scores.items() if name != self.chosen]
        return bool(others) and math.prod(self.scores[self.chosen]) > max(others) + MARGIN

    def record(self) -> dict[str, Any]:
        """For the provenance."""
        scores = {name: [round(value, 4) for value in score] for name, score in self.scores.items()}
        return {"chosen": self.chosen, "documented": self.documented, "decided": self.decided, "scores": scores}


def decide(what: str, documented: str, scores: Mapping[str, tuple[float, ...]]) -> Verdict:
    """The documented reading, unless another is better by more than MARGIN in every respect (which is logged)."""
    better = [
        name
        for name, score in scores.items()
        if all(new > old + MARGIN for new, old in zip(score, scores[documented], strict=True))
    ]
    best = max(better, key=lambda name: math.prod(scores[name]), default=documented)
    verdict = Verdict(chosen=best, documented=documented, scores=dict(scores))
    if best != documented:
        _log.warning(
            "%s: read as %r, not as %r, by reprojection (%s)", what, best, documented, verdict.record()["scores"]
        )
    return verdict


def agreement(
    depth: Float[Tensor, "T H W"],
    intrinsics: Float[Tensor, "T 3 3"],
    cam2world: Float[Tensor, "T 4 4"],
    rtol: float = RTOL,
) -> tuple[float, float]:
    """Of the pixels of frame 0, moved into later frames, the share that has their depth within rtol.

    Twice: of all pixels, and of those that land on known depth. A wrong pose must do worse in both: it loses pixels
    out of the image, which alone may also happen to the right one, and what it does not lose must disagree.

    Args:
        depth: z-depth, not positive where unknown.
        intrinsics: pixels.
        cam2world: OpenCV axes, any world.
        rtol: relative tolerance.
    """
    height, width = depth.shape[1:]
    stride = max(1, round((height * width / PIXELS) ** 0.5))
    grid = camera.pixel_grid((height, width), torch.float64)[::stride, ::stride]
    first = depth[0, ::stride, ::stride].double()
    known = (first > 0) & first.isfinite()
    points = camera.unproject(grid[known], first[known], intrinsics[0].double())
    agreeing = landed = total = 0
    for gap in (gap for gap in GAPS if gap < len(depth)):
        there = pose.inverse(cam2world[gap].double()) @ cam2world[0].double()
        local = pose.transform(there, points)
        uv = camera.project(local, intrinsics[gap].double()).round()
        inside = (local[:, 2] > 0) & (uv >= 0).all(-1) & (uv[:, 0] < width) & (uv[:, 1] < height)
        column, row = uv[inside].long().unbind(-1)
        z, seen = local[inside, 2], depth[gap][row, column].double()
        agreeing += int(((z - seen).abs() <= rtol * seen).sum())
        landed += int((seen > 0).sum())
        total += len(points)
    return agreeing / max(1, total), agreeing / max(1, landed)


AXES = {
    f"x {'right' if x > 0 else 'left'}, y {'down' if y > 0 else 'up'}, z {'forward' if z > 0 else 'backward'}": (
        x,
        y,
        z,
    )
    for x, y, z in product((1, -1), repeat=3)
}
"""Which way the axes of a camera point; the first is OpenCV's."""
OPENCV, OPENGL = "x right, y down, z forward", "x right, y up, z backward"
DIRECTIONS = ("camera to world", "world to camera")


def pose_reading(matrices: Float[Tensor, "T 4 4"], direction: str, axes: str) -> Float[Tensor, "T 4 4"]:
    """Stored matrices as cam2world with OpenCV axes, relative to the first; left-handed worlds are mirrored away.

    Args:
        matrices: as stored; a proper rotation or one with a mirrored axis, and a translation.
        direction: one of DIRECTIONS.
        axes: a key of AXES, the camera's.
    """
    matrices = matrices.double()
    cam2world = matrices if direction == DIRECTIONS[0] else torch.linalg.inv(matrices)
    flip = torch.diag(torch.tensor((*AXES[axes], 1), dtype=torch.float64))
    cam2world = cam2world @ flip
    return torch.linalg.inv(cam2world[:1]) @ cam2world


def choose_poses(
    what: str,
    matrices: Float[Tensor, "T 4 4"],
    depth: Float[Tensor, "T H W"],
    intrinsics: Float[Tensor, "T 3 3"],
    documented: tuple[str, str],
    axes: tuple[str, ...] = tuple(AXES),
) -> tuple[Float[Tensor, "T 4 4"], Verdict]:
    """Camera poses read in the way that makes static depth agree: direction and axes.

    Args:
        what: name of the sequence, for the log.
        matrices: as stored.
        depth: z-depth.
        intrinsics: pixels.
        documented: (direction, axes) as documented.
        axes: the axes to try; the documented ones are always tried.
    """
    readings = {
        f"{direction}; {name}": pose_reading(matrices, direction, name)
        for direction in DIRECTIONS
        for name in dict.fromkeys((documented[1], *axes))
    }
    scores = {name: agreement(depth, intrinsics, poses) for name, poses in readings.items()}
    verdict = decide(f"poses of {what}", "; ".join(documented), scores)
    return readings[verdict.chosen], verdict


PLANAR, ALONG_RAY = "planar depth", "distance along the ray"


def planar(distance: Float[Tensor, "T H W"], intrinsics: Float[Tensor, "T 3 3"]) -> Float[Tensor, "T H W"]:
    """z-depth of distances from the camera centre: z = d / |K^-1 [u, v, 1]|."""
    size = (distance.shape[-2], distance.shape[-1])
    return (distance.double() / camera.camera_rays(intrinsics.double(), size).norm(dim=-1)).to(distance.dtype)


def choose_depth(
    what: str,
    stored: Float[Tensor, "T H W"],
    intrinsics: Float[Tensor, "T 3 3"],
    cam2world: Float[Tensor, "T 4 4"],
    documented: str,
) -> tuple[Float[Tensor, "T H W"], Verdict]:
    """z-depth of stored depth that is either planar or along the ray, by static agreement."""
    readings = {PLANAR: stored, ALONG_RAY: planar(stored, intrinsics)}
    scores = {name: agreement(depth, intrinsics, cam2world) for name, depth in readings.items()}
    verdict = decide(f"depth of {what}", documented, scores)
    return readings[verdict.chosen], verdict


def flow_agreement(
    ahead: Float[Tensor, "T H W 3"],
    optical: Float[Tensor, "T H W 2"],
    known: Bool[Tensor, "T H W"],
    intrinsics: Float[Tensor, "T 3 3"],
    tolerance_px: float = 0.5,
) -> float:
    """Share of the known pixels whose moved point, in the next camera, lies where the optical flow says.

    Args:
        ahead: positions of the pixels' points at the next frame, in the axes of the next camera.
        optical: optical flow, pixels.
        known: where both are given.
        intrinsics: of the next frames.
        tolerance_px: how near is near.
    """
    size = (ahead.shape[1], ahead.shape[2])
    error = camera.project(ahead, intrinsics.to(ahead.dtype)) - camera.pixel_grid(size, ahead.dtype) - optical
    near = (error.norm(dim=-1) < tolerance_px) & (ahead[..., 2] > 0)
    return float((near & known).sum()) / max(1, int(known.sum()))


def explained(what: str, shares: Sequence[float]) -> dict[str, float]:
    """The mean share of optical flow that scene flow explains, for the provenance; a low one is logged.

    It does not choose between readings: it tells that what the adapter takes for granted does not hold on these frames.
    """
    share = sum(shares) / len(shares)
    if share < EXPLAINED:
        _log.warning("%s: only %.0f %% of the optical flow fits the scene flow; do not trust it", what, 100 * share)
    return {"optical_flow_explained": round(share, 4)}


def points_of(depth: Float[Tensor, "T H W"], intrinsics: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "T H W 3"]:
    """Camera-frame points in float64 (for decisions and flow; the scene itself is float32)."""
    return pointmap.from_depth(depth.double(), intrinsics.double().expand(len(depth), 3, 3))
