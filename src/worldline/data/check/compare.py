"""Points brought into another frame, and what that frame's depth says about them.

A point at depth z that lands on a pixel with depth d agrees if |z - d| <= tolerance * d. If z > d it is hidden, which
happens in any scene. If z < d the other camera looks through the point: that contradicts the cameras, the depth or the
motion, whichever was used. Nearest pixel, no interpolation; this is the figure of data-formats.md, section 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldline.geometry import camera, pointmap, pose
from worldline.scene import Scene4D

MARGIN_PX = 1
"""A point also agrees if a pixel this close has its depth: rounding at the rims of things is no contradiction."""


class Label(IntEnum):
    """What is said about a pixel."""

    UNTESTED = 0
    AGREES = 1
    HIDDEN = 2
    THROUGH = 3


@dataclass(frozen=True, kw_only=True)
class Count:
    """Pixels of one or more comparisons.

    Attributes:
        agrees, hidden, through: how many of each.
    """

    agrees: int = 0
    hidden: int = 0
    through: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            agrees=self.agrees + other.agrees, hidden=self.hidden + other.hidden, through=self.through + other.through
        )

    @property
    def tested(self) -> int:
        """Pixels that landed on a known depth."""
        return self.agrees + self.hidden + self.through

    @property
    def agreement(self) -> float:
        """Share of the tested pixels that agree; hidden ones count against it. NaN without any."""
        return self.agrees / self.tested if self.tested else float("nan")

    @property
    def consistency(self) -> float:
        """Share of agreeing pixels among those that agree or are looked through; hidden ones do not count. NaN
        without any.
        """
        judged = self.agrees + self.through
        return self.agrees / judged if judged else float("nan")


def count(labels: UInt8[Tensor, "*any"]) -> Count:
    """How many pixels have which label."""
    number = torch.bincount(labels.flatten().long(), minlength=4).tolist()
    return Count(agrees=number[Label.AGREES], hidden=number[Label.HIDDEN], through=number[Label.THROUGH])


def compare(
    points: Float[Tensor, "*any 3"], chosen: Bool[Tensor, "*any"], frame: Scene4D, tolerance: float = 0.05
) -> UInt8[Tensor, "*any"]:
    """Label of every chosen point, seen from a frame.

    Args:
        points: world positions at the time of the frame.
        chosen: which are to be tested.
        frame: a scene of one frame with cameras, in the same world.
        tolerance: relative difference of depth.

    Returns:
        `Label` of each point; untested where not chosen, outside of the image, behind the camera, or where the frame
        has no depth.
    """
    assert frame.cameras is not None
    height, width = frame.size
    labels = torch.zeros(chosen.shape, dtype=torch.uint8)
    world = points[chosen].double()
    local = pose.transform(pose.inverse(frame.cameras.cam2world[0].double()), world)
    uv = camera.project(local, frame.cameras.intrinsics[0].double()).round()
    inside = (local[..., 2] > 0) & (uv >= 0).all(-1) & (uv[..., 0] < width) & (uv[..., 1] < height)
    column, row = torch.where(inside[..., None], uv, torch.zeros_like(uv)).long().unbind(-1)
    depth = pointmap.scene_depth(frame)[0].double()
    valid = frame.valid[0]
    z, seen = local[..., 2], depth[row, column]
    known = inside & valid[row, column]
    agrees = (z - seen).abs() <= tolerance * seen
    for dv in range(-MARGIN_PX, MARGIN_PX + 1):
        for du in range(-MARGIN_PX, MARGIN_PX + 1):
            r, c = (row + dv).clamp(0, height - 1), (column + du).clamp(0, width - 1)
            beside = depth[r, c]
            agrees |= valid[r, c] & ((z - beside).abs() <= tolerance * beside)
    said = torch.where(agrees, Label.AGREES, torch.where(z > seen, Label.HIDDEN, Label.THROUGH))
    labels[chosen] = torch.where(known, said, Label.UNTESTED).to(torch.uint8)
    return labels
