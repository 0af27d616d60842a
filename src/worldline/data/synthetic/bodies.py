"""Bodies: things put together from posed primitives.

A body frame has its origin on the ground under the body, y down, z forward. Builders return parts posed in that frame
over time; `placed` carries them along a path through the stage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldline.data.synthetic.materials import Material
from worldline.data.synthetic.motion import Triple, affine, rotate


@dataclass(frozen=True, kw_only=True)
class Part:
    """One primitive.

    Attributes:
        kind: one of shapes.KINDS.
        pose: [T, 4, 4] affine map of the unit primitive into the stage ([1, 4, 4] if it stands still).
        size: [3] half sizes in metres at rest: what texture is measured with.
        paint: its material.
        taper: radius of a cone's top relative to its bottom.
    """

    kind: str
    pose: np.ndarray
    size: np.ndarray
    paint: Material
    taper: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Body:
    """Parts that are one object, with its name and the radius of the circle it stands in."""

    parts: tuple[Part, ...]
    noun: str
    radius: float
    motion: str = "static"


def part(
    kind: str,
    paint: Material,
    size: Triple,
    centre: Triple = (0, 0, 0),
    rotation: np.ndarray | None = None,
    taper: float = 1.0,
) -> Part:
    """A primitive of the given half sizes at a place of the body frame."""
    pose = affine(rotation, centre, size)
    return Part(
        kind=kind, pose=pose.reshape(-1, 4, 4), size=np.asarray(size, dtype=np.float64), paint=paint, taper=taper
    )


def limb(paint: Material, start: np.ndarray, end: np.ndarray, radius: float) -> Part:
    """An ellipsoid from joint to joint; start and end are [T, 3], a constant distance apart."""
    axis = end - start
    length = np.linalg.norm(axis, axis=-1, keepdims=True)
    axis = axis / length
    side = np.array([1.0, 0, 0]) - axis * axis[:, :1]
    side = side / np.linalg.norm(side, axis=-1, keepdims=True)
    rotation = np.stack([side, axis, np.cross(side, axis)], -1)
    size = (radius, float(length[0, 0]) * 0.56, radius)
    return part("ellipsoid", paint, size, (start + end) / 2, rotation)


def placed(body: Body, position: np.ndarray, yaw: np.ndarray | float = 0.0, motion: str | None = None) -> Body:
    """The body carried along: position [T, 3] (or [3]) of its origin, yaw [T] of its forward axis from +z to +x."""
    frame = affine(rotate(1, np.atleast_1d(yaw)), np.atleast_2d(position))
    parts = tuple(replace(p, pose=frame @ p.pose) for p in body.parts)
    return replace(body, parts=parts, motion=motion or body.motion)


def hinge(start: np.ndarray, angle: np.ndarray, length: float) -> np.ndarray:
    """End [T, 3] of a bone hanging from `start`, swung forward by angle [T] in the body's y-z plane."""
    return start + length * np.stack([np.zeros_like(angle), np.cos(angle), np.sin(angle)], -1)
