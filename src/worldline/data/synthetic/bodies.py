"""Bodies: people, animals, vehicles, furniture, plants and toys, put together from posed primitives.

A body frame has its origin on the ground under the body, y down, z forward. Builders return parts posed in that frame
over time; `placed` carries them along a path through the stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from worldline.data.synthetic.materials import Material, colour_name, material
from worldline.data.synthetic.motion import affine, rotate, rotate_about


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
    size: tuple[float, float, float],
    centre: tuple[float, float, float] | np.ndarray = (0, 0, 0),
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


def _hinge(start: np.ndarray, angle: np.ndarray, length: float) -> np.ndarray:
    """End [T, 3] of a bone hanging from `start`, swung forward by angle [T] in the body's y-z plane."""
    return start + length * np.stack([np.zeros_like(angle), np.cos(angle), np.sin(angle)], -1)


def person(rng: np.random.Generator, phase: np.ndarray, contrast: float) -> Body:
    """A walking figure; phase [T] in radians of the gait (a constant phase stands still)."""
    h = float(rng.uniform(1.5, 1.95))
    shirt = material(rng, frequency=9, contrast=contrast, patterns=("noise", "stripes", "checks"))
    trousers = material(rng, frequency=14, contrast=0.6 * contrast)
    skin = material(rng, base=(0.72, 0.5, 0.38), frequency=12, contrast=0.3 * contrast, vary=0.35)
    shoes = material(rng, base="black", frequency=14, contrast=contrast)
    swing, still = float(rng.uniform(0.35, 0.6)), np.zeros((len(phase), 1))
    bob = 0.012 * h * np.cos(2 * phase)

    def at(x: float, y: float, z: float = 0.0) -> np.ndarray:
        return np.concatenate([still + x * h, -y * h + bob[:, None], still + z * h], -1)

    parts = [
        limb(shirt, at(0, 0.50), at(0, 0.83), 0.095 * h),
        part("ellipsoid", shirt, (0.125 * h, 0.075 * h, 0.075 * h), at(0, 0.775)),
        part("ellipsoid", trousers, (0.095 * h, 0.07 * h, 0.075 * h), at(0, 0.50)),
        part("ellipsoid", skin, (0.055 * h, 0.075 * h, 0.062 * h), at(0, 0.925, 0.01)),
    ]
    for side in (-1, 1):
        gait = phase + (np.pi / 2) * (1 - side)
        thigh = swing * np.sin(gait)
        knee = _hinge(at(0.055 * side, 0.50), thigh, 0.245 * h)
        shin = thigh - 0.9 * swing * (1 - np.cos(gait + 0.6)) * 0.8
        ankle = _hinge(knee, shin, 0.225 * h)
        parts += [limb(trousers, at(0.055 * side, 0.50), knee, 0.052 * h), limb(trousers, knee, ankle, 0.037 * h)]
        foot = ankle + np.array([0, 0.012 * h, 0.035 * h])
        parts.append(part("ellipsoid", shoes, (0.03 * h, 0.022 * h, 0.07 * h), foot))
        arm = -0.8 * swing * np.sin(gait)
        elbow = _hinge(at(0.135 * side, 0.80), arm, 0.165 * h)
        hand = _hinge(elbow, arm + 0.35 + 0.2 * np.sin(gait), 0.165 * h)
        parts += [limb(shirt, at(0.135 * side, 0.80), elbow, 0.033 * h), limb(skin, elbow, hand, 0.026 * h)]
    return Body(parts=tuple(parts), noun=f"person in {colour_name(shirt)}", radius=0.35 * h)


def animal(rng: np.random.Generator, phase: np.ndarray, contrast: float) -> Body:
    """A four-legged walker between a dog and a cow; phase [T] of the gait."""
    h = float(rng.uniform(0.45, 1.3))
    length = h * float(rng.uniform(1.1, 1.5))
    fur = material(
        rng, base=str(rng.choice(["brown", "black", "white", "grey", "orange"])), frequency=5 / h, contrast=contrast
    )
    still = np.zeros((len(phase), 1))
    bob = 0.015 * h * np.sin(2 * phase)[:, None]

    def at(x: float, y: float, z: float) -> np.ndarray:
        return np.concatenate([still + x * h, -y * h + bob, still + z * length], -1)

    nod = 0.1 * np.sin(phase)
    neck = at(0, 0.85, 0.45)
    head = neck + 0.42 * h * np.stack([0 * nod, -np.cos(0.7 + nod), np.sin(0.7 + nod)], -1)
    parts = [
        part("ellipsoid", fur, (0.23 * h, 0.26 * h, 0.58 * length), at(0, 0.72, 0)),
        limb(fur, neck, head, 0.13 * h),
        part("ellipsoid", fur, (0.12 * h, 0.12 * h, 0.24 * h), head + np.array([0, 0.02 * h, 0.1 * h])),
        limb(fur, at(0, 0.85, -0.5), _hinge(at(0, 0.85, -0.5), -0.5 + 0.3 * np.sin(phase), 0.5 * h), 0.04 * h),
    ]
    for z, offset in ((0.38, 0.0), (-0.4, np.pi / 2)):
        for side in (-1, 1):
            gait = phase + offset + (np.pi / 2) * (1 - side)
            upper = 0.45 * np.sin(gait)
            knee = _hinge(at(0.13 * side, 0.6, z), upper, 0.31 * h)
            foot = _hinge(knee, upper - 0.35 * (1 - np.cos(gait + 0.5)), 0.3 * h)
            parts += [limb(fur, at(0.13 * side, 0.6, z), knee, 0.09 * h), limb(fur, knee, foot, 0.055 * h)]
    return Body(parts=tuple(parts), noun=f"{colour_name(fur)} animal", radius=0.7 * length)


def robot_arm(rng: np.random.Generator, phase: np.ndarray, contrast: float) -> Body:
    """A base with a three-link arm; phase [T] drives its joints."""
    scale = float(rng.uniform(0.35, 0.8))
    metal = material(rng, base=str(rng.choice(["orange", "white", "yellow", "blue"])), contrast=contrast, frequency=6)
    dark = material(rng, base="grey", contrast=contrast, frequency=8)
    turn = rotate(1, 0.8 * np.sin(0.7 * phase + 1))
    radius = 0.13 * scale
    joint = np.tile(np.array([0.0, -0.5 * scale, 0.0]), (len(phase), 1))
    parts = [part("cone", dark, (0.35 * scale, 0.25 * scale, 0.35 * scale), (0, -0.25 * scale, 0), taper=0.7)]
    angle = np.pi - 0.5 + 0.5 * np.sin(phase)
    for link in range(3):
        end = joint + (turn @ (_hinge(joint * 0, angle, scale * (1.0 - 0.2 * link)))[..., None])[..., 0]
        parts += [limb(metal, joint, end, radius), part("ellipsoid", dark, (radius * 1.1,) * 3, end)]
        joint, radius = end, radius * 0.8
        angle = angle - 0.9 - 0.5 * np.sin(phase * (1.3 + 0.4 * link) + link)
    return Body(parts=tuple(parts), noun=f"{colour_name(metal)} robot arm", radius=1.6 * scale)


def car(rng: np.random.Generator, travelled: np.ndarray, contrast: float) -> Body:
    """A car whose wheels turn with the travelled distance [T]."""
    length, width, height = float(rng.uniform(3.4, 5)), float(rng.uniform(1.6, 1.9)), float(rng.uniform(1.3, 1.9))
    paint = material(rng, contrast=0.5 * contrast, frequency=2)
    glass = material(rng, base="black", contrast=0.4 * contrast, frequency=3)
    tyre = material(rng, base="black", contrast=contrast, frequency=3, patterns=("stripes", "checks"), aligned=True)
    r = 0.32
    parts = [
        part("box", paint, (width / 2, 0.27 * height, length / 2), (0, -r - 0.25 * height, 0)),
        part("box", glass, (width * 0.44, 0.2 * height, length * 0.27), (0, -r - 0.7 * height, -0.08 * length)),
        part("box", paint, (width * 0.42, 0.03 * height, length * 0.25), (0, -r - 0.9 * height, -0.08 * length)),
    ]
    spin = rotate(0, -travelled / r) @ rotate(2, np.pi / 2)
    for x in (-1, 1):
        for z in (-0.31, 0.31):
            centre = np.array([x * width * 0.46, -r, z * length])
            parts.append(part("cone", tyre, (r, 0.11, r), centre, spin))
    return Body(parts=tuple(parts), noun=f"{colour_name(paint)} car", radius=0.52 * length)


def ball(rng: np.random.Generator, travelled: np.ndarray, contrast: float) -> Body:
    """A ball that rolls forward by the travelled distance [T]."""
    r = float(rng.uniform(0.12, 0.6))
    paint = material(rng, frequency=1.5 / r, contrast=contrast, patterns=("checks", "stripes", "noise", "tiles"))
    parts = (part("ellipsoid", paint, (r, r, r), (0, -r, 0), rotate(0, -travelled / r)),)
    return Body(parts=parts, noun=f"{colour_name(paint)} ball", radius=r)


def toy(rng: np.random.Generator, turn: np.ndarray, contrast: float) -> Body:
    """A box, can, cone, ellipsoid or compound of them around its origin, tumbling by turn [T] radians."""
    r = float(np.exp(rng.uniform(np.log(0.12), np.log(0.8))))
    paint = material(
        rng, frequency=1.6 / r, contrast=contrast, patterns=("noise", "checks", "stripes", "wood", "tiles")
    )
    rotation = rotate_about(rotation_axis(rng), turn) @ _random_turn(rng)
    aspect = np.exp(rng.normal(size=3) * 0.35)
    size = tuple(float(v) for v in r * aspect / aspect.max())
    kind, noun, taper = [
        ("box", "box", 1.0),
        ("ellipsoid", "egg", 1.0),
        ("cone", "can", 1.0),
        ("cone", "cone", float(rng.uniform(0, 0.7))),
    ][int(rng.integers(4))]
    if kind == "cone":
        size = (size[0], size[1], size[0])
    parts = [part(kind, paint, size, rotation=rotation, taper=taper)]
    if rng.random() < 0.35:
        other = material(rng, frequency=2 / r, contrast=contrast, patterns=("noise", "checks", "stripes"))
        arm = rotation @ (rotation_axis(rng) * np.array(size))
        small = tuple(float(v) for v in 0.45 * r * np.exp(rng.normal(size=3) * 0.2))
        parts.append(part(str(rng.choice(["box", "ellipsoid"])), other, small, arm, rotation))
    return Body(parts=tuple(parts), noun=f"{colour_name(paint)} {noun}", radius=1.4 * r, motion="tumbles")


def blob(rng: np.random.Generator, phase: np.ndarray, contrast: float) -> Body:
    """A soft body that pulsates, squashes at constant volume and shears; phase [T]."""
    r = float(rng.uniform(0.25, 0.8))
    kind = str(rng.choice(["ellipsoid", "ellipsoid", "box", "cone"]))
    paint = material(rng, frequency=1.5 / r, contrast=contrast, patterns=("noise", "checks", "stripes", "tiles"))
    squash = np.exp(rng.uniform(0.15, 0.4) * np.sin(phase))
    breathe = 1 + rng.uniform(0, 0.15) * np.sin(1.7 * phase + 1)
    scale = r * np.stack([breathe / np.sqrt(squash), breathe * squash, breathe / np.sqrt(squash)], -1)
    shear = np.tile(np.eye(3), (len(phase), 1, 1))
    shear[:, 0, 1] = rng.uniform(0, 0.5) * np.sin(0.8 * phase)
    shear[:, 2, 1] = rng.uniform(0, 0.5) * np.cos(0.6 * phase)
    linear = shear * scale[:, None, :]
    pose = affine(linear, np.stack([0 * phase, -scale[:, 1], 0 * phase], -1))
    parts = (Part(kind=kind, pose=pose, size=np.full(3, r), paint=paint, taper=float(rng.uniform(0.3, 0.9))),)
    return Body(parts=parts, noun=f"soft {colour_name(paint)} body", radius=1.8 * r, motion="squashes and stretches")


def rotation_axis(rng: np.random.Generator) -> np.ndarray:
    """Uniform unit vector [3]."""
    axis = rng.normal(size=3)
    return axis / np.linalg.norm(axis)


def _random_turn(rng: np.random.Generator) -> np.ndarray:
    return rotate_about(rotation_axis(rng), np.array(rng.uniform(0, np.pi)))


def tree(rng: np.random.Generator, contrast: float) -> Body:
    """A broad-leaved or coniferous tree."""
    h = float(rng.uniform(2.5, 7))
    bark = material(rng, base="brown", frequency=6, contrast=contrast)
    leaves = material(rng, base=(0.2, 0.42, 0.12), frequency=3, contrast=contrast, vary=0.4)
    trunk = part("cone", bark, (0.05 * h, 0.25 * h, 0.05 * h), (0, -0.25 * h, 0), taper=0.6)
    if rng.random() < 0.4:
        crown = [
            part("cone", leaves, (w * h, 0.16 * h, w * h), (0, -y * h, 0), taper=0.15)
            for w, y in ((0.24, 0.42), (0.19, 0.62), (0.13, 0.82))
        ]
    else:
        crown = []
        for _ in range(3):
            x, z = rng.normal(size=2) * 0.11 * h
            w = float(rng.uniform(0.15, 0.26)) * h
            crown.append(part("ellipsoid", leaves, (w, 0.8 * w, w), (x, -h * rng.uniform(0.55, 0.85), z)))
    return Body(parts=(trunk, *crown), noun="tree", radius=0.3 * h)


def post(rng: np.random.Generator, contrast: float) -> Body:
    """A thin lamp post, pole or column."""
    h, r = float(rng.uniform(1.2, 5)), float(np.exp(rng.uniform(np.log(0.03), np.log(0.25))))
    paint = material(rng, base=str(rng.choice(["grey", "black", "white", "brown"])), frequency=4, contrast=contrast)
    parts = [part("cone", paint, (r, h / 2, r), (0, -h / 2, 0), taper=float(rng.uniform(0.6, 1)))]
    if rng.random() < 0.5:
        parts.append(part("ellipsoid", material(rng, base="white", contrast=contrast), (0.2, 0.15, 0.2), (0, -h, 0)))
    return Body(parts=tuple(parts), noun="post", radius=r + 0.1)


def building(rng: np.random.Generator, contrast: float) -> Body:
    """A house: a block with a pattern of windows or bricks, and a roof slab."""
    w, h, d = (float(v) for v in rng.uniform((3, 3, 3), (9, 14, 9)))
    wall = material(
        rng, frequency=0.5, contrast=contrast, patterns=("tiles", "checks", "stripes", "noise"), aligned=True, vary=0.4
    )
    roof = material(rng, base="brown", frequency=1.5, contrast=contrast, vary=0.5)
    parts = (
        part("box", wall, (w / 2, h / 2, d / 2), (0, -h / 2, 0)),
        part("box", roof, (w * 0.53, 0.15, d * 0.53), (0, -h - 0.15, 0)),
    )
    return Body(parts=parts, noun="building", radius=0.6 * float(np.hypot(w, d)))


def rock(rng: np.random.Generator, contrast: float) -> Body:
    """A boulder half in the ground."""
    r = float(np.exp(rng.uniform(np.log(0.2), np.log(1.6))))
    paint = material(rng, base="grey", frequency=3 / r**0.5, contrast=contrast, vary=0.4)
    size = tuple(float(v) for v in r * np.exp(rng.normal(size=3) * 0.25))
    return Body(
        parts=(part("ellipsoid", paint, size, (0, -0.3 * size[1], 0), _random_turn(rng)),), noun="rock", radius=1.3 * r
    )


def table(rng: np.random.Generator, contrast: float) -> Body:
    """A table or stool with four thin legs, sometimes with a thing on it."""
    w, h, d = (float(v) for v in rng.uniform((0.25, 0.42, 0.25), (0.9, 0.85, 0.5)))
    paint = material(rng, base="brown", frequency=5, contrast=contrast, patterns=("wood", "noise"), vary=0.5)
    parts = [part("box", paint, (w, 0.025, d), (0, -h, 0))]
    for x in (-1, 1):
        for z in (-1, 1):
            parts.append(part("box", paint, (0.025, h / 2, 0.025), (x * (w - 0.05), -h / 2, z * (d - 0.05))))
    if rng.random() < 0.6:
        thing, r = (
            material(rng, frequency=10, contrast=contrast, patterns=("noise", "stripes")),
            float(rng.uniform(0.06, 0.2)),
        )
        kind = str(rng.choice(["box", "ellipsoid", "cone"]))
        parts.append(part(kind, thing, (r, r, r), (w * rng.uniform(-0.6, 0.6), -h - 0.025 - r, 0), taper=0.6))
    return Body(parts=tuple(parts), noun="table", radius=float(np.hypot(w, d)))


def cabinet(rng: np.random.Generator, contrast: float) -> Body:
    """A cabinet, shelf, sofa or crate: one or a few blocks."""
    w, h, d = (float(v) for v in rng.uniform((0.3, 0.3, 0.2), (1.1, 2.0, 0.45)))
    paint = material(rng, frequency=4, contrast=contrast, patterns=("wood", "noise", "tiles", "stripes"), aligned=True)
    parts = [part("box", paint, (w, h / 2, d), (0, -h / 2, 0))]
    if rng.random() < 0.5:
        other = material(rng, frequency=6, contrast=contrast)
        parts.append(part("box", other, (w * 0.8, 0.15, d * 0.7), (0, -h - 0.15, 0)))
    return Body(parts=tuple(parts), noun="cabinet", radius=float(np.hypot(w, d)))


def panel(rng: np.random.Generator, contrast: float, width: float, height: float) -> Body:
    """A thin upright panel of full width and height: a picture, door, screen or free-standing wall."""
    paint = material(
        rng, frequency=3 / width, contrast=contrast, patterns=("noise", "gradient", "checks", "tiles"), aligned=True
    )
    return Body(
        parts=(part("box", paint, (width / 2, height / 2, 0.03), (0, -height / 2, 0)),),
        noun="panel",
        radius=0.55 * width,
    )


WALKERS: dict[str, Callable[[np.random.Generator, np.ndarray, float], Body]] = {"person": person, "animal": animal}
ROLLERS: dict[str, Callable[[np.random.Generator, np.ndarray, float], Body]] = {"ball": ball, "car": car}
INDOOR = (table, cabinet, cabinet, post)
OUTDOOR = (tree, tree, post, rock, building)
WILD = (tree, tree, rock, rock, post)
