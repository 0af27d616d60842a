"""Rays against unit primitives: the closest hit of a primitive that an affine map placed in the scene.

Every primitive is a unit shape in its own canonical frame (y down): the sphere of radius 1, the cube [-1, 1]^3, the
capped cone of radius 1 at y = +1 and `taper` at y = -1 (taper 1 is a cylinder, 0 a cone). A ray is o + t d with
d = m (x, y, 1) for the normalised image coordinates (x, y) of a camera, so t is the z-depth in that camera; `m`
holds the 12 entries of the 3x4 camera-to-object map. Components are separate tensors that broadcast against each
other: contiguous memory for the eager path and one fused loop for the compiled one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NEAR = 0.02
FAR = 1.0e6
TINY = 1.0e-12

Vector = tuple[Tensor, Tensor, Tensor]
Entries = Tensor | Sequence[Tensor]


def direction(x: Tensor, y: Tensor, m: Tensor) -> Vector:
    """Directions m[:, :3] (x, y, 1) as three tensors; m is [12, ...] row-major 3x4."""
    return (
        (m[0] * x + m[2]) + m[1] * y,
        (m[4] * x + m[6]) + m[5] * y,
        (m[8] * x + m[10]) + m[9] * y,
    )


def apply(m: Entries, p: Vector) -> Vector:
    """Points m (p, 1) for row-major 3x4 entries m [12, ...]."""
    px, py, pz = p
    return (
        m[0] * px + m[1] * py + m[2] * pz + m[3],
        m[4] * px + m[5] * py + m[6] * pz + m[7],
        m[8] * px + m[9] * py + m[10] * pz + m[11],
    )


def dot(a: Vector, b: Vector) -> Tensor:
    """Sum of the products of the components, in a fixed order."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _away_from_zero(value: Tensor) -> Tensor:
    return torch.where(value.abs() < TINY, TINY, value)


def ellipsoid(o: Vector, d: Vector, taper: Tensor) -> Tensor:
    """Depth of the first hit with the unit sphere, FAR where there is none.

    Measured from the point of the ray nearest to the centre, which keeps small far spheres exact in float32.
    """
    a = dot(d, d) + TINY
    middle = -dot(o, d) / a
    px, py, pz = o[0] + middle * d[0], o[1] + middle * d[1], o[2] + middle * d[2]
    inside = 1 - (px * px + py * py + pz * pz)
    t = middle - (inside.clamp_min(0) / a).sqrt()
    return torch.where((inside > 0) & (t > NEAR), t, FAR)


def box_interval(o: Vector, d: Vector) -> tuple[Tensor, Tensor]:
    """Entry and exit depth of the unit cube by slabs; the entry is behind the exit where the ray misses."""
    near, far = None, None
    for origin, along in zip(o, d, strict=True):
        inverse = 1 / _away_from_zero(along)
        middle, half = -origin * inverse, inverse.abs()
        low, high = middle - half, middle + half
        near = low if near is None else torch.maximum(near, low)
        far = high if far is None else torch.minimum(far, high)
    assert near is not None and far is not None
    return near, far


def box(o: Vector, d: Vector, taper: Tensor) -> Tensor:
    """Depth of the first hit with the cube [-1, 1]^3 from outside, FAR where there is none."""
    near, far = box_interval(o, d)
    return torch.where((near < far) & (near > NEAR), near, FAR)


def cone(o: Vector, d: Vector, taper: Tensor) -> Tensor:
    """Depth of the first hit with the capped cone |y| <= 1 of radius (1 + taper)/2 + y (1 - taper)/2."""
    middle = -dot(o, d) / (dot(d, d) + TINY)  # solve about the point nearest to the centre: exact in float32 when far
    ox, oy, oz = o[0] + middle * d[0], o[1] + middle * d[1], o[2] + middle * d[2]
    dx, dy, dz = d
    base, slope = (1 + taper) / 2, (1 - taper) / 2
    radius = base + slope * oy
    a = _away_from_zero(dx * dx + dz * dz - slope * slope * dy * dy)
    b = ox * dx + oz * dz - slope * dy * radius
    discriminant = b * b - a * (ox * ox + oz * oz - radius * radius)
    root = discriminant.clamp_min(0).sqrt()
    near_limit = NEAR - middle

    best = torch.full_like(a, FAR)
    for sign in (-1, 1):  # both crossings of the side
        s = (sign * root - b) / a
        hit = (discriminant > 0) & ((oy + s * dy).abs() <= 1) & (s > near_limit)
        best = torch.where(hit & (s < best), s, best)
    inverse = 1 / _away_from_zero(dy)
    for height, squared in ((-1.0, taper * taper), (1.0, torch.ones_like(taper))):  # both caps
        s = (height - oy) * inverse
        qx, qz = ox + s * dx, oz + s * dz
        hit = (qx * qx + qz * qz <= squared) & (s > near_limit)
        best = torch.where(hit & (s < best), s, best)
    return torch.where(best < FAR, best + middle, FAR)


def room(o: Vector, d: Vector) -> tuple[Tensor, Tensor, Tensor]:
    """Exit depth of the cube seen from inside, and whether the exit is through the floor (y = +1) or the ceiling."""
    _, far = box_interval(o, d)
    inverse = 1 / _away_from_zero(d[1])
    level = inverse.abs() - o[1] * inverse <= far
    return far, level & (d[1] > 0), level & (d[1] <= 0)


def ground(o: Vector, d: Vector, far: Tensor) -> Tensor:
    """Depth of the plane y = 0 seen from above (y < 0), FAR at and beyond the horizon."""
    t = -o[1] / d[1].clamp_min(TINY)
    return torch.where((t > NEAR) & (t < far), t, FAR)


def shadow_ellipsoid(o: Vector, light: Vector, taper: Tensor) -> Tensor:
    """Whether the unit sphere cuts the segment from o to the light."""
    d = (light[0] - o[0], light[1] - o[1], light[2] - o[2])
    s = (-dot(o, d) / (dot(d, d) + TINY)).clamp(0, 1)
    px, py, pz = o[0] + s * d[0], o[1] + s * d[1], o[2] + s * d[2]
    return px * px + py * py + pz * pz < 1


def shadow_box(o: Vector, light: Vector, taper: Tensor) -> Tensor:
    """Whether the unit cube cuts the segment from o to the light."""
    near, far = box_interval(o, (light[0] - o[0], light[1] - o[1], light[2] - o[2]))
    return (near < far) & (far > 0) & (near < 1)


def shadow_cone(o: Vector, light: Vector, taper: Tensor) -> Tensor:
    """Whether the capped cone cuts the segment from o to the light."""
    return cone(o, (light[0] - o[0], light[1] - o[1], light[2] - o[2]), taper) < 1


HIT: dict[str, Callable[[Vector, Vector, Tensor], Tensor]] = {"ellipsoid": ellipsoid, "box": box, "cone": cone}
SHADOW: dict[str, Callable[[Vector, Vector, Tensor], Tensor]] = {
    "ellipsoid": shadow_ellipsoid,
    "box": shadow_box,
    "cone": shadow_cone,
}
KINDS = tuple(HIT)
