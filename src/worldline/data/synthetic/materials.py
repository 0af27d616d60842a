"""Random materials: what a surface is painted with."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from worldline.data.synthetic.textures import PATTERNS

COLOURS = {
    "red": (0.75, 0.12, 0.1),
    "orange": (0.9, 0.45, 0.1),
    "yellow": (0.88, 0.78, 0.2),
    "green": (0.2, 0.55, 0.2),
    "teal": (0.1, 0.55, 0.55),
    "blue": (0.15, 0.3, 0.75),
    "purple": (0.5, 0.2, 0.6),
    "pink": (0.9, 0.5, 0.6),
    "brown": (0.42, 0.27, 0.16),
    "white": (0.88, 0.87, 0.85),
    "grey": (0.5, 0.5, 0.5),
    "black": (0.1, 0.1, 0.11),
}


@dataclass(frozen=True, kw_only=True)
class Material:
    """Paint of one primitive.

    Attributes:
        colours: three RGB colours in [0, 1] (linear reflectance): the two of the pattern and one of large patches.
        weights: of the patterns, in the order of textures.PATTERNS; sum 1.
        frequency: noise cells per metre.
        period: pattern periods per noise cell.
        warp: how much noise bends the pattern.
        detail: strength of the fractal brightness variation.
        patches: strength of the third colour in large patches.
        rotation: [3, 3] texture axes in object axes.
        offset: [3] texture origin.
    """

    colours: tuple[tuple[float, float, float], ...]
    weights: tuple[float, ...]
    frequency: float
    period: float
    warp: float
    detail: float
    patches: float
    rotation: np.ndarray
    offset: np.ndarray


def rotation_matrix(rng: np.random.Generator) -> np.ndarray:
    """Uniform random rotation [3, 3]."""
    q = rng.normal(size=4)
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _vary(rng: np.random.Generator, colour: tuple[float, ...], amount: float) -> tuple[float, float, float]:
    gain = 1 + amount * rng.uniform(-1, 1)
    r, g, b = (float(np.clip(c * gain + amount * 0.25 * rng.uniform(-1, 1), 0.03, 0.95)) for c in colour)
    return r, g, b


def random_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """A colour as objects have them: any hue, saturation and value spread."""
    return colorsys.hsv_to_rgb(rng.random(), float(rng.beta(1.6, 1.6)), 0.15 + 0.75 * rng.random())


def material(
    rng: np.random.Generator,
    *,
    base: tuple[float, ...] | str | None = None,
    patterns: tuple[str, ...] = ("noise",),
    frequency: float = 4.0,
    contrast: float = 1.0,
    vary: float = 0.15,
    aligned: bool = False,
    tame: float = 0.5,
) -> Material:
    """A random material.

    Args:
        rng: the scene's random numbers.
        base: main colour or its name, None for a random one.
        patterns: names of textures.PATTERNS to choose from.
        frequency: noise cells per metre, varied by half an octave either way.
        contrast: 0 for a nearly uniform surface, 1 for ordinary texture.
        vary: how far the main colour strays from `base`.
        aligned: whether texture axes are the object's.
        tame: probability that the second colour is a relative of the first.
    """
    first = _vary(rng, COLOURS[base] if isinstance(base, str) else (base or random_colour(rng)), vary)
    target = _vary(rng, first, 0.7) if rng.random() < tame else random_colour(rng)
    blend = contrast * rng.uniform(0.45, 1)
    second = tuple(a + (b - a) * blend for a, b in zip(first, target, strict=True))
    third = _vary(rng, first, 0.5 * contrast)
    chosen = patterns[int(rng.integers(len(patterns)))]
    return Material(
        colours=(first, second, third),  # type: ignore[arg-type]
        weights=tuple(float(name == chosen) for name in PATTERNS),
        frequency=float(frequency * 2 ** rng.uniform(-0.5, 0.5)),
        period=float(2 ** rng.uniform(-1, 1)),
        warp=float(rng.uniform(0, 0.4)) if rng.random() < 0.5 else 0.0,
        detail=float(contrast * rng.uniform(0.4, 1.1)),
        patches=float(contrast * rng.uniform(0, 0.8)),
        rotation=np.eye(3) if aligned else rotation_matrix(rng),
        offset=rng.uniform(-40, 40, 3),
    )


def colour_name(material: Material) -> str:
    """Nearest named colour of the main colour."""
    first = np.array(material.colours[0])
    return min(COLOURS, key=lambda name: float(((np.array(COLOURS[name]) - first) ** 2).sum()))
