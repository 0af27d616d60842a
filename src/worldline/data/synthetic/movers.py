"""Moving bodies: what moves in a scene and along which path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worldline.data.synthetic import creatures, toys
from worldline.data.synthetic.bodies import Body, placed
from worldline.data.synthetic.categories import Category
from worldline.data.synthetic.layouts import Placing
from worldline.data.synthetic.motion import flight_path, ground_path

TRIES = 12


def sample_movers(
    rng: np.random.Generator, style: Category, placing: Placing, frames: int, tempo: float, contrast: float
) -> list[Body]:
    """Moving bodies in view of the first camera that stay off the camera's path.

    Args:
        rng: the scene's random numbers.
        style: the category.
        placing: stage and camera.
        frames: T.
        tempo: seconds of their life per frame.
        contrast: of their texture.
    """
    if not style.movers:
        return []
    count = int(rng.integers(style.count[0], style.count[1] + 1))
    moving: list[Body] = []
    for _ in range(count):
        group = style.movers[int(rng.integers(len(style.movers)))]
        for _ in range(TRIES):
            body = _GROUPS[group](rng, placing, frames, tempo, contrast)
            if body is not None:
                moving.append(body)
                break
    return moving


def _walk(
    rng: np.random.Generator, placing: Placing, frames: int, speed: float, radius: float, still: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Ground position [T, 3], heading [T] and travelled distance [T] of a body, None if it would meet the camera."""
    stage = placing.stage
    far = stage.far_body if stage.kind == "room" else 0.4 * stage.far_body
    start = placing.spot(rng, stage.near_body + radius + 0.3, far)
    reach = 0.8 * float(min(stage.half[0], stage.half[2])) if stage.kind == "room" else 9.0
    path, heading, travelled = ground_path(
        rng, frames, start, float(rng.uniform(0, 2 * np.pi)), 0.0 if still else speed, reach
    )
    if not placing.clear(path, radius):
        return None
    y = stage.ground(path[:, 0], path[:, 1])
    return np.stack([path[:, 0], y, path[:, 1]], -1), heading, travelled


def _articulated(rng: np.random.Generator, placing: Placing, frames: int, tempo: float, contrast: float) -> Body | None:
    choice = rng.random()
    if choice < 0.2:
        found = _walk(rng, placing, frames, 0.0, 0.8, still=True)
        if found is None:
            return None
        phase = rng.uniform(0, 6) + 2.5 * tempo * np.arange(frames)
        return replace(placed(creatures.robot_arm(rng, phase, contrast), found[0][0], found[1][0]), motion="swings")
    person = choice < 0.7
    speed = float(rng.uniform(0.7, 2.2)) * tempo
    found = _walk(rng, placing, frames, speed, 0.5 if person else 0.9)
    if found is None:
        return None
    phase = rng.uniform(0, 6) + found[2] * (2 * np.pi / 1.4)
    body = (creatures.person if person else creatures.animal)(rng, phase, contrast)
    return placed(body, found[0], found[1], "walks")


def _rigid(rng: np.random.Generator, placing: Placing, frames: int, tempo: float, contrast: float) -> Body | None:
    choice = rng.random()
    if choice < 0.45:
        return _flyer(rng, placing, frames, tempo, contrast)
    outdoors = placing.stage.kind != "room"
    is_car = outdoors and choice < 0.7
    speed = float(rng.uniform(1.5, 6) if is_car else rng.uniform(0.5, 2)) * tempo
    found = _walk(rng, placing, frames, speed, 2.6 if is_car else 0.6)
    if found is None:
        return None
    position, heading, travelled = found
    if is_car:
        return placed(toys.car(rng, travelled, contrast), position, heading, "drives")
    body = toys.ball(rng, travelled, contrast)
    if rng.random() < 0.4:
        hop = np.abs(np.sin(rng.uniform(0, 3) + travelled * rng.uniform(2, 5) / body.radius * 0.3))
        position = position - np.outer(hop * body.radius * rng.uniform(1, 2.5), [0, 1, 0])
        return placed(body, position, heading, "bounces")
    return placed(body, position, heading, "rolls")


def _flyer(rng: np.random.Generator, placing: Placing, frames: int, tempo: float, contrast: float) -> Body | None:
    body = toys.toy(rng, rng.uniform(0.3, 3) * tempo * np.arange(frames), contrast)
    stage = placing.stage
    near = stage.near_body + body.radius
    spot = placing.spot(rng, near, max(near + 0.5, 0.4 * stage.far_body))
    y = float(stage.ground(spot[:1], spot[1:])[0]) - body.radius - rng.uniform(0, 1.2)
    reach = 0.5 if stage.kind == "room" else 2.0
    path = flight_path(rng, frames, np.array([spot[0], y, spot[1]]), float(rng.uniform(0.4, 2)) * tempo, reach)
    floor = stage.ground(path[:, 0], path[:, 2]) - 0.7 * body.radius
    path[:, 1] = np.minimum(path[:, 1], floor)
    if stage.kind == "room":
        path[:, 1] = np.maximum(path[:, 1], stage.centre[1] - stage.half[1] + 0.8 * body.radius)
    return placed(body, path, 0.0, "tumbles") if placing.clear(path[:, [0, 2]], body.radius) else None


def _deforming(rng: np.random.Generator, placing: Placing, frames: int, tempo: float, contrast: float) -> Body | None:
    phase = rng.uniform(0, 6) + rng.uniform(2, 6) * tempo * np.arange(frames)
    body = toys.blob(rng, phase, contrast)
    found = _walk(rng, placing, frames, float(rng.uniform(0.2, 1.2)) * tempo, body.radius, still=rng.random() < 0.3)
    return None if found is None else placed(body, found[0], found[1])


_GROUPS = {"articulated": _articulated, "rigid": _rigid, "deforming": _deforming}
