"""Camera paths that start at a given view and stay where a scene can be seen."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.geometry.pose import from_rt, so3_exp

DEGREES = {"orbit": 40.0, "pan_left": 20.0, "pan_right": 20.0}
FRACTIONS = {"static": 0.0, "dolly_in": 0.3, "dolly_out": 0.5, "left": 0.2, "right": 0.2, "up": 0.2, "down": 0.2,
             "spiral": 0.15}  # fmt: skip
NAMES = (*FRACTIONS, *DEGREES)


def camera_path(
    name: str, start: Float[Tensor, "4 4"], distance: float, frames: int, amount: float | None = None
) -> Float[Tensor, "frames 4 4"]:
    """Poses (cam2world, OpenCV axes) of a path whose first one is `start`.

    static          stays.
    dolly_in, _out  moves along the view by `amount` of the distance.
    left, right, up, down   moves sideways by `amount` of the distance, looking ahead all the time.
    pan_left, _right        turns by `amount` degrees on the spot.
    orbit           turns around what is `distance` ahead by `amount` degrees (to the right; negative to the left),
                    looking at it; 360 comes back.
    spiral          winds twice around the view with a radius of up to `amount` of the distance, looking at what is
                    ahead, and comes back.

    Args:
        name: one of `NAMES`.
        start: pose of the first camera.
        distance: to what is looked at, in world units; the median depth of the first frame is a good choice.
        frames: number of poses.
        amount: how far, see above; None for a moderate amount.

    Raises:
        ValueError: the name is unknown, or distance or frames are not positive.
    """
    if name not in NAMES:
        raise ValueError(f"There is no camera path {name!r}; choose one of {', '.join(NAMES)}.")
    if frames < 1 or not distance > 0:
        raise ValueError(f"A camera path needs frames and distance above 0, got {frames} and {distance}.")
    amount = {**DEGREES, **FRACTIONS}[name] if amount is None else amount
    local = torch.stack([_local(name, fraction, amount, distance) for fraction in _fractions(frames)])
    return start @ local.to(start)


def _fractions(frames: int) -> list[float]:
    return [index / max(1, frames - 1) for index in range(frames)]


def _local(name: str, fraction: float, amount: float, distance: float) -> Tensor:
    """Pose at a fraction of the path, in the axes of the first camera."""
    if name in _TURNS:
        return _TURNS[name](fraction, amount, distance)
    step = torch.tensor(_DIRECTIONS[name], dtype=torch.float64) * (amount * fraction * distance)
    return from_rt(torch.eye(3, dtype=torch.float64), step)


def _rotation_y(degrees: float) -> Tensor:
    return so3_exp(torch.tensor([0.0, math.radians(degrees), 0.0], dtype=torch.float64))


def _pan(sign: float) -> Callable[[float, float, float], Tensor]:
    return lambda fraction, amount, distance: from_rt(
        _rotation_y(sign * amount * fraction), torch.zeros(3, dtype=torch.float64)
    )


def _orbit(fraction: float, amount: float, distance: float) -> Tensor:
    rotation = _rotation_y(-amount * fraction)
    pivot = torch.tensor([0.0, 0.0, distance], dtype=torch.float64)
    return from_rt(rotation, pivot - rotation @ pivot)


def _spiral(fraction: float, amount: float, distance: float) -> Tensor:
    radius, angle = amount * distance * math.sin(math.pi * fraction), 4 * math.pi * fraction
    position = torch.tensor([radius * math.cos(angle), radius * math.sin(angle), 0.0], dtype=torch.float64)
    return look_at(position, torch.tensor([0.0, 0.0, distance], dtype=torch.float64))


def look_at(
    position: Float[Tensor, "3"], target: Float[Tensor, "3"], down: Float[Tensor, "3"] | None = None
) -> Float[Tensor, "4 4"]:
    """Pose of a camera at `position` that looks at `target`, with the image's down direction near `down` (default +y).

    Raises:
        ValueError: the target is where the camera is, or straight along `down`.
    """
    down = position.new_tensor([0.0, 1.0, 0.0]) if down is None else down
    forward = target - position
    right = torch.linalg.cross(down, forward)
    if not float(right.norm()) > 1e-9 * float(down.norm() * forward.norm()):
        raise ValueError("The camera cannot look at its own place or straight along its down direction.")
    forward, right = forward / forward.norm(), right / right.norm()
    return from_rt(torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-1), position)


_DIRECTIONS = {
    "static": (0.0, 0.0, 0.0),
    "dolly_in": (0.0, 0.0, 1.0),
    "dolly_out": (0.0, 0.0, -1.0),
    "left": (-1.0, 0.0, 0.0),
    "right": (1.0, 0.0, 0.0),
    "up": (0.0, -1.0, 0.0),
    "down": (0.0, 1.0, 0.0),
}
_TURNS = {"orbit": _orbit, "spiral": _spiral, "pan_left": _pan(-1.0), "pan_right": _pan(1.0)}
