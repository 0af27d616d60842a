"""What a hit is made of: object coordinates, normal, texture, light, and the exact truth that goes with the colour."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldline.data.synthetic import pack, shapes, terrain
from worldline.data.synthetic.shapes import FAR, Entries, Vector
from worldline.data.synthetic.textures import fractal_noise, pattern


class Surface(NamedTuple):
    """Per pixel [B, T, H, W]: colour and truth. Vectors have three components last; the sky has zeros."""

    rgb: Tensor
    depth: Tensor
    points: Tensor
    scene_flow: Tensor
    normals: Tensor
    sky: Tensor
    object_id: Tensor
    moving: Tensor


def _object_normal(p: Vector, kind: Tensor, taper: Tensor, waves: Tensor, background: str) -> Vector:
    """Outward normals in the object's own frame, not normalised."""
    px, py, pz = p
    ax, ay, az = px.abs(), py.abs(), pz.abs()
    on_x = (ax >= ay) & (ax >= az)
    on_y = ~on_x & (ay >= az)
    on_z = ~on_x & ~on_y
    sign = torch.where(kind == pack.KIND_CODES["room"], -1.0, 1.0)
    flat = (on_x * px.sign() * sign, on_y * py.sign() * sign, on_z * pz.sign() * sign)
    base, slope = (1 + taper) / 2, (1 - taper) / 2
    radius = base + slope * py
    side = (px * px + pz * pz).sqrt() - radius
    on_cap = (ay - 1) > side  # nearer to a cap's plane than to the side
    zero = torch.zeros_like(px)
    round_ = (
        torch.where(on_cap, zero, px),
        torch.where(on_cap, py.sign(), -slope * radius),
        torch.where(on_cap, zero, pz),
    )
    is_ellipsoid, is_cone = kind == pack.KIND_CODES["ellipsoid"], kind == pack.KIND_CODES["cone"]
    n = [torch.where(is_ellipsoid, c, torch.where(is_cone, r, f)) for c, r, f in zip(p, round_, flat, strict=True)]
    if background != "room":
        is_ground = kind == pack.KIND_CODES[background]
        gx, gz = zero, zero
        if background == "terrain":
            gx, gz = terrain.slopes(waves, px, pz)
        n = [torch.where(is_ground, g, c) for g, c in zip((gx, zero - 1, gz), n, strict=True)]
    return n[0], n[1], n[2]


def _unit(v: Vector) -> Vector:
    scale = (shapes.dot(v, v) + 1e-20).rsqrt()
    return v[0] * scale, v[1] * scale, v[2] * scale


def _rotate(m: Tensor, v: Vector, columns: int) -> Vector:
    """Rotation part of row-major m [3 * columns, ...] times v."""
    rows = [m[i * columns] * v[0] + m[i * columns + 1] * v[1] + m[i * columns + 2] * v[2] for i in range(3)]
    return rows[0], rows[1], rows[2]


def _rotate_back(m: Entries, v: Vector) -> Vector:
    """Transposed rotation part of row-major 3x4 m times v."""
    columns = [m[i] * v[0] + m[4 + i] * v[1] + m[8 + i] * v[2] for i in range(3)]
    return columns[0], columns[1], columns[2]


def _albedo(q: Vector, normal: Vector, footprint: Tensor, f: dict[int, Tensor]) -> tuple[Vector, Tensor]:
    """Colour of the paint, and its noise."""
    noise = fractal_noise(q, footprint)
    period = f[pack.PERIOD]
    weights = torch.stack([f[i] for i in range(pack.WEIGHTS.start, pack.WEIGHTS.stop)])
    mix = pattern(
        (q[0] * period, q[1] * period, q[2] * period), normal, noise, footprint * period, weights, f[pack.WARP]
    )
    patch = (noise * 3 - 0.3).clamp(0, 1) * f[pack.PATCHES]
    gain = 1 + noise * f[pack.DETAIL]
    colours = []
    start = pack.COLOURS.start
    for channel in range(3):
        first, second, third = (f[start + 3 * i + channel] for i in range(3))
        colour = first + (second - first) * mix
        colours.append((colour + (third - colour) * patch) * gain)
    return (colours[0], colours[1], colours[2]), noise


def _sky(direction: Vector, noise: Tensor, scene: Tensor) -> list[Tensor]:
    """Sky colour of a unit direction in the stage (y down)."""
    elevation = (-direction[1]).clamp(0, 1)
    blend = elevation.sqrt()
    cloud = (noise * 1.6 + 0.15).clamp(0, 1) * (elevation * 5).clamp(0, 1) * scene[pack.CLOUDS]
    colours = []
    for channel in range(3):
        horizon, zenith = scene[pack.HORIZON][channel], scene[pack.ZENITH][channel]
        clear = horizon + (zenith - horizon) * blend
        colours.append(clear + (0.95 - clear) * cloud)
    return colours


def _lit(
    p: Vector,
    n: Vector,
    heading: Vector,
    paint: Vector,
    noise: Tensor,
    lit: Tensor,
    sky: Tensor,
    frame: Tensor,
    scene: Tensor,
    background: str,
) -> Tensor:
    """Colour [B, T, H, W, 3] of camera points p with normals n in the light and the air; sky along heading."""
    to_light = tuple(frame[pack.LIGHT][i] - p[i] for i in range(3))
    distance2 = shapes.dot(to_light, to_light)  # type: ignore[arg-type]
    cosine = shapes.dot(n, to_light) * (distance2 + 1e-12).rsqrt()  # type: ignore[arg-type]
    direct = cosine.clamp_min(0) * lit / (1 + distance2 / scene[pack.REACH] ** 2)
    stage_row = frame[pack.TO_STAGE][3:6]
    upward = 0.5 - 0.5 * (stage_row[0] * n[0] + stage_row[1] * n[1] + stage_row[2] * n[2])
    air = 1 - torch.exp(-p[2] / scene[pack.HAZE])
    above = _sky(heading, noise, scene)
    rgb = []
    for c in range(3):
        ambient = scene[pack.BELOW][c] + (scene[pack.ABOVE][c] - scene[pack.BELOW][c]) * upward
        colour = paint[c] * (ambient + direct * scene[pack.LIGHT_COLOUR][c])
        colour = colour + (scene[pack.HORIZON][c] - colour) * air
        colour = torch.where(sky, above[c], colour) if background != "room" else colour
        rgb.append((colour * scene[pack.EXPOSURE]).clamp(0, 1).sqrt())  # gamma 2
    return torch.stack(rgb, -1)


def shade(
    x: Tensor,
    y: Tensor,
    depth: Tensor,
    slot: Tensor,
    lit: Tensor,
    timed: Tensor,
    fixed: Tensor,
    frame: Tensor,
    scene: Tensor,
    waves: Tensor,
    background: str,
) -> Surface:
    """Colour and truth of the hits; tables as in pack.Tables."""
    sky = depth >= FAR
    z = torch.where(sky, 0.0, depth)
    p = (x * z, y * z, z)

    # 1. Gather the numbers of the slot that was hit.
    batch, frames, slots = timed.shape[1:]
    scenes = torch.arange(batch, device=depth.device, dtype=torch.int32)[:, None, None, None]
    times = torch.arange(frames, device=depth.device, dtype=torch.int32)[None, :, None, None]
    of_time = ((scenes * frames + times) * slots + slot).reshape(-1)
    of_scene = (scenes * slots + slot).reshape(-1)
    timed, fixed = timed.reshape(24, -1), fixed.reshape(pack.FIXED, -1)
    m = [timed[i].index_select(0, of_time).view_as(depth) for i in range(24)]
    f = {i: fixed[i].index_select(0, of_scene).view_as(depth) for i in range(pack.FIXED)}

    # 2. Object coordinates, normal and texture.
    at = shapes.apply(m, p)
    own = _object_normal(at, f[pack.KIND], f[pack.TAPER], waves, background)
    n = _unit(_rotate_back(m, own))
    q = shapes.apply([f[i] for i in range(12)], at)
    ray = _unit((x.expand_as(depth), y.expand_as(depth), torch.ones_like(depth)))
    facing = shapes.dot(n, ray).abs().clamp_min(0.2)
    footprint = z / frame[pack.FOCAL] * f[pack.FREQUENCY] / facing
    heading = _rotate(frame[pack.TO_STAGE], ray, 3)
    if background != "room":
        spread = 1.2 / ((-heading[1]).clamp_min(0) + 0.2)
        q = tuple(torch.where(sky, h * spread, c) for h, c in zip(heading, q, strict=True))  # type: ignore[assignment]
        footprint = torch.where(sky, 0.02, footprint)
    paint, noise = _albedo(q, own, footprint, f)

    # 3. Light and truth.
    solid = ~sky
    world = shapes.apply(frame[pack.TO_WORLD], p)
    flow = shapes.apply(m[12:], p)
    normal = _rotate(frame[pack.TO_WORLD], n, 4)
    return Surface(
        rgb=_lit(p, n, heading, paint, noise, lit, sky, frame, scene, background),
        depth=z,
        points=torch.stack([c * solid for c in world], -1),
        scene_flow=torch.stack([c * solid for c in flow], -1),
        normals=torch.stack([c * solid for c in normal], -1),
        sky=sky,
        object_id=torch.where(sky, -1, f[pack.INSTANCE].to(torch.int32)),
        moving=(f[pack.MOVING] > 0) & solid,
    )
