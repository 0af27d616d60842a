"""Things that stand still: plants, posts, buildings, rocks and furniture."""

from __future__ import annotations

import numpy as np

from worldline.data.synthetic.bodies import Body, part
from worldline.data.synthetic.materials import material, rotation_matrix


def tree(rng: np.random.Generator, contrast: float) -> Body:
    """A broad-leaved or coniferous tree."""
    h = float(rng.uniform(2.5, 7))
    bark = material(rng, base="brown", frequency=6.0, contrast=contrast)
    leaves = material(rng, base=(0.2, 0.42, 0.12), frequency=3.0, contrast=contrast, vary=0.4)
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
    paint = material(rng, base=str(rng.choice(["grey", "black", "white", "brown"])), frequency=4.0, contrast=contrast)
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
    paint = material(rng, base="grey", frequency=3.0 / r**0.5, contrast=contrast, vary=0.4)
    size = tuple(float(v) for v in r * np.exp(rng.normal(size=3) * 0.25))
    return Body(
        parts=(part("ellipsoid", paint, size, (0, -0.3 * size[1], 0), rotation_matrix(rng)),),
        noun="rock",
        radius=1.3 * r,
    )


def table(rng: np.random.Generator, contrast: float) -> Body:
    """A table or stool with four thin legs, sometimes with a thing on it."""
    w, h, d = (float(v) for v in rng.uniform((0.25, 0.42, 0.25), (0.9, 0.85, 0.5)))
    paint = material(rng, base="brown", frequency=5.0, contrast=contrast, patterns=("wood", "noise"), vary=0.5)
    parts = [part("box", paint, (w, 0.025, d), (0, -h, 0))]
    for x in (-1, 1):
        for z in (-1, 1):
            parts.append(part("box", paint, (0.025, h / 2, 0.025), (x * (w - 0.05), -h / 2, z * (d - 0.05))))
    if rng.random() < 0.6:
        thing, r = (
            material(rng, frequency=10.0, contrast=contrast, patterns=("noise", "stripes")),
            float(rng.uniform(0.06, 0.2)),
        )
        kind = str(rng.choice(["box", "ellipsoid", "cone"]))
        parts.append(part(kind, thing, (r, r, r), (w * rng.uniform(-0.6, 0.6), -h - 0.025 - r, 0), taper=0.6))
    return Body(parts=tuple(parts), noun="table", radius=float(np.hypot(w, d)))


def cabinet(rng: np.random.Generator, contrast: float) -> Body:
    """A cabinet, shelf, sofa or crate: one or a few blocks."""
    w, h, d = (float(v) for v in rng.uniform((0.3, 0.3, 0.2), (1.1, 2.0, 0.45)))
    paint = material(
        rng, frequency=4.0, contrast=contrast, patterns=("wood", "noise", "tiles", "stripes"), aligned=True
    )
    parts = [part("box", paint, (w, h / 2, d), (0, -h / 2, 0))]
    if rng.random() < 0.5:
        other = material(rng, frequency=6.0, contrast=contrast)
        parts.append(part("box", other, (w * 0.8, 0.15, d * 0.7), (0, -h - 0.15, 0)))
    return Body(parts=tuple(parts), noun="cabinet", radius=float(np.hypot(w, d)))


def panel(rng: np.random.Generator, contrast: float, width: float, height: float) -> Body:
    """A thin upright panel of full width and height: a picture, door, screen or free-standing wall."""
    paint = material(
        rng, frequency=3.0 / width, contrast=contrast, patterns=("noise", "gradient", "checks", "tiles"), aligned=True
    )
    return Body(
        parts=(part("box", paint, (width / 2, height / 2, 0.03), (0, -height / 2, 0)),),
        noun="panel",
        radius=0.55 * width,
    )


INDOOR = (table, cabinet, cabinet, post)
OUTDOOR = (tree, tree, post, rock, building)
WILD = (tree, tree, rock, rock, post)
