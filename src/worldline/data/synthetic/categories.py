"""Categories of scenes: what each kind of clip promises. The evaluation suite and training draw from the same list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOVING_CAMERA = ("handheld", "orbit", "dolly", "pan", "zoom")
TRAVELLING_CAMERA = ("handheld", "orbit", "dolly")


@dataclass(frozen=True, kw_only=True)
class Category:
    """How scenes of one category are drawn.

    Attributes:
        cameras: kinds of camera path (cameras.PATHS).
        movers: groups of moving bodies to draw from: "rigid", "articulated", "deforming"; empty for none.
        count: least and greatest number of moving bodies.
        contrast: range of texture contrast (1 = ordinary).
        speed: factor on the speed of everything that moves.
        screens: number of foreground posts and panels that hide what is behind.
        clutter: factor on the number of still bodies.
        frames: default clip length.
    """

    cameras: tuple[str, ...] = MOVING_CAMERA
    movers: tuple[str, ...] = ("rigid", "articulated", "deforming")
    count: tuple[int, int] = (1, 4)
    contrast: tuple[float, float] = (0.5, 1.2)
    speed: float = 1.0
    screens: int = 0
    clutter: float = 1.0
    frames: int = 16


CATEGORIES: dict[str, Category] = {
    "rigid": Category(movers=("rigid",), count=(2, 5), cameras=(*MOVING_CAMERA, "static")),
    "articulated": Category(movers=("articulated",), count=(1, 3), cameras=(*MOVING_CAMERA, "static")),
    "deforming": Category(movers=("deforming",), count=(2, 4), cameras=(*MOVING_CAMERA, "static")),
    "camera_only": Category(movers=(), count=(0, 0)),
    "object_only": Category(cameras=("static",), count=(2, 5)),
    "both": Category(cameras=TRAVELLING_CAMERA, count=(2, 5)),
    "fast": Category(cameras=TRAVELLING_CAMERA, count=(2, 4), speed=5.0),
    "occlusion": Category(
        movers=("rigid", "articulated"), count=(3, 5), screens=4, speed=2.0, cameras=TRAVELLING_CAMERA
    ),
    "low_texture": Category(contrast=(0.0, 0.06), clutter=0.5),
    "long": Category(cameras=TRAVELLING_CAMERA, count=(2, 5), frames=64),
}
"""The categories of the evaluation suite by name."""

NAMES = tuple(CATEGORIES)

_TRAINING_MIX = (
    "rigid",
    "articulated",
    "deforming",
    "camera_only",
    "object_only",
    "both",
    "both",
    "both",
    "fast",
    "occlusion",
)


def draw(rng: np.random.Generator, name: str | None) -> str:
    """The category itself, or a random one of the training mix for None.

    Raises:
        ValueError: for a name that is none of NAMES.
    """
    if name is None:
        if rng.random() < 0.04:
            return "low_texture"
        return _TRAINING_MIX[int(rng.integers(len(_TRAINING_MIX)))]
    if name not in CATEGORIES:
        raise ValueError(f"Unknown synthetic category {name!r}; choose one of {', '.join(NAMES)}.")
    return name
