"""Things that move: cars, balls, tumbling solids and soft bodies."""

from __future__ import annotations

import numpy as np

from worldline.data.synthetic.bodies import Body, Part, part
from worldline.data.synthetic.materials import colour_name, material, rotation_matrix
from worldline.data.synthetic.motion import affine, rotate, rotate_about


def car(rng: np.random.Generator, travelled: np.ndarray, contrast: float) -> Body:
    """A car whose wheels turn with the travelled distance [T]."""
    length, width, height = float(rng.uniform(3.4, 5)), float(rng.uniform(1.6, 1.9)), float(rng.uniform(1.3, 1.9))
    paint = material(rng, contrast=0.5 * contrast, frequency=2.0)
    glass = material(rng, base="black", contrast=0.4 * contrast, frequency=3.0)
    tyre = material(rng, base="black", contrast=contrast, frequency=3.0, patterns=("stripes", "checks"), aligned=True)
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
    rotation = rotate_about(rotation_axis(rng), turn) @ rotation_matrix(rng)
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
        other = material(rng, frequency=2.0 / r, contrast=contrast, patterns=("noise", "checks", "stripes"))
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
