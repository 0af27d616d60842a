"""The eleven camera paths that MoRe4D names, each starting at the input view (spec 4.4).

Five are written down in its code and given here as they are, up to the change of frame that puts the first pose at the
input view; six are only named there and are defined here. c is the mean of the scene's points as the input camera sees
them. Steps are i/T, so that a path which comes back would do so one step after its last pose.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.geometry.pose import from_rt, inverse, so3_exp
from worldline.render.paths import look_at

SWAY = 0.2
"""How far x_moving and y_moving go, as a fraction of |cz|."""


def preset_path(
    name: str,
    start: Float[Tensor, "4 4"],
    center: Float[Tensor, "3"],
    frames: int,
    *,
    as_published: bool = False,
) -> Float[Tensor, "frames 4 4"]:
    """Poses (cam2world, OpenCV axes) of a preset path whose first one is `start`.

    static             stays.
    forward_backward   forward by 0.1 |cz|, back to -0.1 |cz|, and home.
    circle_rotating    a circle of radius 0.05 |cz|, drifting forward by 0.15 |cz|, looking at c.
    surrounding        45 degrees around c; anti-surrounding the other way.
    camera_rotate      rolls by up to 30 degrees and back.
    circular           a circle of radius 0.1 |cz| in the image plane, looking straight ahead.
    x_moving, y_moving to the right (down) by 0.2 |cz|, to the other side, and home, looking straight ahead.
    mix1               forward_backward while rolling;  mix2  x_moving while going forward by 0.2 |cz|, looking at c.

    Args:
        name: one of `PRESETS`.
        start: pose of the input camera.
        center: c, in the input camera's axes.
        frames: T.
        as_published: leave circle_rotating and surrounding where the published code starts them: not at the input view.

    Raises:
        ValueError: unknown name, no frames, or a centre in the camera itself.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no camera preset {name!r}; choose one of {', '.join(PRESETS)}.")
    if frames < 1 or not float(center[2].abs()) > 0:
        raise ValueError(f"A camera preset needs frames and a centre ahead, got {frames} and {center.tolist()}.")
    center = center.detach().double().cpu()
    local = torch.stack([PRESETS[name](i, frames, center) for i in range(frames)])
    if not as_published:
        local = inverse(local[:1]) @ local
    return start @ local.to(start)


def _moved(x: float, y: float, z: float) -> Tensor:
    return from_rt(torch.eye(3, dtype=torch.float64), torch.tensor([x, y, z], dtype=torch.float64))


def _forth(i: int, frames: int) -> float:
    """0 -> 1/4 -> -1/4 -> 0 over the frames, turning at the quarters (whole frames, rounded down)."""
    fraction = i / frames
    if i < frames // 4:
        return fraction
    return 0.5 - fraction if i < 3 * frames // 4 else fraction - 1


def _static(i: int, frames: int, c: Tensor) -> Tensor:
    return _moved(0.0, 0.0, 0.0)


def _forward_backward(i: int, frames: int, c: Tensor) -> Tensor:
    return _moved(0.0, 0.0, 0.4 * float(c[2].abs()) * _forth(i, frames))


def _circle_rotating(i: int, frames: int, c: Tensor) -> Tensor:
    radius, angle = 0.05 * float(c[2].abs()), 2 * math.pi * i / frames
    return look_at(c.new_tensor([radius * math.cos(angle), radius * math.sin(angle), 3 * radius * i / frames]), c)


def _surrounding(sign: float) -> Callable[[int, int, Tensor], Tensor]:
    def pose(i: int, frames: int, c: Tensor) -> Tensor:
        x, z = float(c[0]), float(c[2])
        radius = math.hypot(x, z)
        angle = -sign * math.pi / 4 * i / frames - math.atan2(z, x)
        return look_at(c.new_tensor([x + radius * math.cos(angle), 0.0, z + radius * math.sin(angle)]), c)

    return pose


def _roll(i: int, frames: int) -> Tensor:
    angle = math.radians(30) * math.sin(math.pi * i / frames)
    return so3_exp(torch.tensor([0.0, 0.0, angle], dtype=torch.float64))


def _camera_rotate(i: int, frames: int, c: Tensor) -> Tensor:
    return from_rt(_roll(i, frames), torch.zeros(3, dtype=torch.float64))


def _circular(i: int, frames: int, c: Tensor) -> Tensor:
    radius, angle = 0.1 * float(c[2].abs()), 2 * math.pi * i / frames
    return _moved(radius * (math.cos(angle) - 1), radius * math.sin(angle), 0.0)


def _sway(axis: int) -> Callable[[int, int, Tensor], Tensor]:
    def pose(i: int, frames: int, c: Tensor) -> Tensor:
        offset = [0.0, 0.0, 0.0]
        offset[axis] = 4 * SWAY * float(c[2].abs()) * _forth(i, frames)
        return _moved(*offset)

    return pose


def _mix1(i: int, frames: int, c: Tensor) -> Tensor:
    return _forward_backward(i, frames, c) @ _camera_rotate(i, frames, c)


def _mix2(i: int, frames: int, c: Tensor) -> Tensor:
    depth = float(c[2].abs())
    position = [4 * SWAY * depth * _forth(i, frames), 0.0, SWAY * depth * i / frames]
    return look_at(c.new_tensor(position), c)


PRESETS: dict[str, Callable[[int, int, Tensor], Tensor]] = {
    "static": _static,
    "forward_backward": _forward_backward,
    "circle_rotating": _circle_rotating,
    "surrounding": _surrounding(1.0),
    "camera_rotate": _camera_rotate,
    "mix1": _mix1,
    "mix2": _mix2,
    "anti-surrounding": _surrounding(-1.0),
    "circular": _circular,
    "y_moving": _sway(1),
    "x_moving": _sway(0),
}
"""Pose in the input camera's axes of frame i of T, by name."""
