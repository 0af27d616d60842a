"""Camera paths: handheld, orbit, dolly, zoom, pan and static, in the stage frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.data.synthetic.motion import rotate, rotate_about, smooth_noise

PATHS = ("handheld", "orbit", "dolly", "zoom", "pan", "static")


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Where the camera was: kind, cam2world [T, 4, 4] in the stage, zoom [T] as factor on the focal length."""

    kind: str
    cam2world: np.ndarray
    zoom: np.ndarray


def look_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotations [T, 3, 3] of cameras at `position` that see `target` in the middle, upright (y down)."""
    forward = target - position
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(np.array([0.0, 1.0, 0.0]), forward)
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    return np.stack([right, np.cross(forward, right), forward], -1)


def _orbit(rng: np.random.Generator, frames: int, start: np.ndarray, focus: np.ndarray, speed: float) -> np.ndarray:
    arm = start - focus
    radius = np.hypot(arm[0], arm[2])
    angle = rng.choice([-1.0, 1.0]) * np.minimum(speed / radius, 0.12) * np.arange(frames)
    return focus + rotate(1, angle) @ arm + np.outer(np.linspace(0, 1, frames), [0, rng.normal() * 0.2, 0])


def _dolly(rng: np.random.Generator, frames: int, start: np.ndarray, focus: np.ndarray, speed: float) -> np.ndarray:
    forward = focus - start
    forward = np.array([forward[0], 0, forward[2]])
    forward = forward / np.linalg.norm(forward)
    side = np.array([forward[2], 0, -forward[0]])
    angle = rng.choice([0.0, 0.0, np.pi / 2, -np.pi / 2, np.pi]) + rng.normal() * 0.3
    travel = np.cos(angle) * forward + np.sin(angle) * side + np.array([0, 0.1 * rng.normal(), 0])
    pace = 1 + 0.2 * np.sin(np.arange(frames) * rng.uniform(0.02, 0.2))
    return start + np.outer(np.concatenate([[0], np.cumsum(pace[:-1])]) * speed, travel)


def _into_bounds(position: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Shrink the excursion from the start, axis by axis, until the whole path is inside the bounds."""
    offset = position - position[:1]
    room = np.where(offset > 0, high - position[0], position[0] - low)
    share = np.clip(np.maximum(room, 0) / np.maximum(np.abs(offset), 1e-9), 0, 1).min(0)
    return position[:1] + offset * share


def camera_path(
    rng: np.random.Generator,
    kind: str,
    frames: int,
    *,
    start: np.ndarray,
    focus: np.ndarray,
    speed: float,
    low: np.ndarray,
    high: np.ndarray,
) -> CameraPath:
    """A random path of one kind.

    Args:
        rng: the scene's random numbers.
        kind: one of PATHS.
        frames: T.
        start: [3] first position.
        focus: [3] point the first camera looks at.
        speed: metres per frame, about.
        low: [3] lower bound of positions.
        high: [3] upper bound.
    """
    still = np.repeat(start[None], frames, 0)
    shake = 0.0 if kind == "static" else rng.uniform(0.1, 1)
    position, turn, zoom = still, np.zeros(frames), np.ones(frames)
    if kind == "handheld":
        position = start + _dolly(rng, frames, np.zeros(3), focus - start, speed * rng.uniform(0, 0.7))
        shake = rng.uniform(0.6, 2)
    elif kind == "orbit":
        position = _orbit(rng, frames, start, focus, speed)
    elif kind == "dolly":
        position = _dolly(rng, frames, start, focus, speed)
    elif kind == "zoom":
        ramp = 0.5 - 0.5 * np.cos(np.pi * np.linspace(0, 1, frames) * rng.uniform(0.6, 1))
        zoom = np.exp(ramp * rng.choice([-0.35, 0.7]))
    elif kind == "pan":
        limit = min(0.03 * frames, rng.uniform(0.2, 0.6))
        turn = rng.choice([-1.0, 1.0]) * limit * (0.5 - 0.5 * np.cos(np.pi * np.linspace(0, 1, frames)))
    wobble = smooth_noise(rng, frames, 6, 0.06) * shake
    position = _into_bounds(position + (wobble[:, :3] - wobble[:1, :3]) * min(speed, 0.05), low, high)
    keeps_heading = kind in ("dolly", "handheld", "pan", "zoom") and rng.random() < 0.7
    target = position + (focus - start) if keeps_heading else np.repeat(focus[None], frames, 0)
    rotation = rotate(1, turn) @ look_at(position, target)
    for axis, degrees in zip(range(3), (0.35, 0.35, 0.25), strict=True):
        rotation = rotation @ rotate(axis, np.deg2rad(degrees) * wobble[:, 3 + axis])
    roll = rng.normal() * np.deg2rad(2.0)
    rotation = rotation @ rotate_about(np.array([0.0, 0.0, 1.0]), np.full(1, roll))
    if kind == "static":
        rotation = np.repeat(rotation[:1], frames, 0)
    cam2world = np.zeros((frames, 4, 4))
    cam2world[:, :3, :3], cam2world[:, :3, 3], cam2world[:, 3, 3] = rotation, position, 1
    return CameraPath(kind=kind, cam2world=cam2world, zoom=zoom)
