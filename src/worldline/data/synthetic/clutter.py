"""Still bodies that furnish a stage: furniture, plants, streets, screens and pictures on walls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from worldline.data.synthetic import furniture, toys
from worldline.data.synthetic.bodies import Body, placed
from worldline.data.synthetic.categories import Category
from worldline.data.synthetic.layouts import Placing, Stage

STREETS = 0.4  # of the open grounds


def sample_clutter(
    rng: np.random.Generator, style: Category, placing: Placing, moving: Sequence[Body], contrast: float
) -> list[Body]:
    """Still bodies that furnish the stage, off the camera's path; screens stand before what moves."""
    stage = placing.stage
    builders: tuple[Callable[[np.random.Generator, float], Body], ...]
    if stage.kind == "room":
        builders, most = furniture.INDOOR, 7
    else:
        builders, most = (furniture.OUTDOOR if stage.kind == "ground" else furniture.WILD), 9
    count = int(rng.integers(3, most + 1) * style.clutter)
    still = _street(rng, placing, contrast) if stage.kind == "ground" and rng.random() < STREETS else []
    still += [body for _ in range(style.screens) if (body := _screen(rng, placing, moving, contrast)) is not None]
    for _ in range(count):
        if rng.random() < 0.25:
            body = placed(toys.toy(rng, np.zeros(1), contrast), np.array([0, -rng.uniform(0, 1.5), 0]))
        else:
            body = builders[int(rng.integers(len(builders)))](rng, contrast)
        found = _settle(
            rng, replace(body, motion="static"), placing, stage.near_body + 1.2 * body.radius, 1.6 * stage.far_body
        )
        still += [found] if found is not None else []
    return still + (_wall_panels(rng, stage, contrast) if stage.kind == "room" else [])


def _settle(rng: np.random.Generator, body: Body, placing: Placing, near: float, far: float) -> Body | None:
    for _ in range(8):
        spot = placing.spot(rng, near + body.radius, far + body.radius, spread=1.3)
        if placing.clear(spot[None], body.radius):
            y = placing.stage.ground(spot[:1], spot[1:])
            return placed(body, np.array([spot[0], y[0], spot[1]]), float(rng.uniform(0, 2 * np.pi)))
    return None


def _screen(rng: np.random.Generator, placing: Placing, moving: Sequence[Body], contrast: float) -> Body | None:
    """A post or narrow panel, between the first camera and something that moves if there is any."""
    width, height = float(rng.uniform(0.15, 0.9)), float(rng.uniform(1.2, 2.6))
    body = furniture.post(rng, contrast) if rng.random() < 0.4 else furniture.panel(rng, contrast, width, height)
    if not moving:
        return _settle(rng, body, placing, placing.stage.near_body, 2.2 * placing.stage.near_body)
    pose = moving[int(rng.integers(len(moving)))].parts[0].pose
    target, eye = pose[len(pose) // 2, [0, 2], 3], placing.view[[0, 2], 3]
    for _ in range(8):
        beside = rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 0.9) * np.array([target[1] - eye[1], eye[0] - target[0]])
        spot = eye + rng.uniform(0.4, 0.8) * (target - eye) + beside / np.linalg.norm(target - eye)
        if placing.clear(spot[None], body.radius):
            y = placing.stage.ground(spot[:1], spot[1:])
            towards = float(np.arctan2(target[0] - eye[0], target[1] - eye[1]))
            return placed(body, np.array([spot[0], y[0], spot[1]]), towards + rng.normal() * 0.4)
    return None


def _wall_panels(rng: np.random.Generator, stage: Stage, contrast: float) -> list[Body]:
    """Pictures, doors and windows on the walls."""
    panels = []
    for _ in range(int(rng.integers(0, 5))):
        door = rng.random() < 0.3
        width, height = (0.9, 2.0) if door else (float(rng.uniform(0.4, 1.4)), float(rng.uniform(0.4, 1.1)))
        body = furniture.panel(rng, contrast, width, height)
        along, y = rng.uniform(-0.8, 0.8), 0.0 if door else -float(rng.uniform(0.7, 1.1))
        side = int(rng.integers(3))
        x, z, yaw = [
            (along * stage.half[0], stage.half[2], 0.0),
            (-stage.half[0], along * stage.half[2], np.pi / 2),
            (stage.half[0], along * stage.half[2], np.pi / 2),
        ][side]
        panels.append(placed(body, np.array([x, y, z]), yaw))
    return panels


def _street(rng: np.random.Generator, placing: Placing, contrast: float) -> list[Body]:
    """Two rows of buildings along the first camera's view."""
    view = placing.view
    yaw = float(np.arctan2(view[0, 2], view[2, 2])) + rng.normal() * 0.15
    along, across = np.array([np.sin(yaw), np.cos(yaw)]), np.array([np.cos(yaw), -np.sin(yaw)])
    rows = []
    for side in (-1, 1):
        width, reach = rng.uniform(4.5, 10), rng.uniform(4, 12)
        while reach < 55:
            body = furniture.building(rng, contrast)
            depth = body.radius
            spot = view[[0, 2], 3] + (reach + depth) * along + side * (width + depth) * across
            if placing.clear(spot[None], depth):
                rows.append(placed(body, np.array([spot[0], 0.0, spot[1]]), yaw))
            reach += 2 * depth * rng.uniform(0.75, 1.6)
    return rows
