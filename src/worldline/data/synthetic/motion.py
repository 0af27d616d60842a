"""Motion: affine maps over time and the paths that bodies follow, in numpy float64.

The stage is the frame scenes are built in: OpenCV axes, y down, gravity along +y, metres. Arrays over time have a
leading axis of T frames, or of 1 for what stands still.
"""

from __future__ import annotations

import numpy as np

Triple = np.ndarray | tuple[float | int, ...]
"""Three numbers, or arrays of them over time."""


def rotate(axis: int, angle: np.ndarray | float) -> np.ndarray:
    """Right-handed rotations [..., 3, 3] about a coordinate axis."""
    angle = np.asarray(angle, dtype=np.float64)
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.zeros((*angle.shape, 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[..., axis, axis] = 1
    matrix[..., i, i] = c
    matrix[..., j, j] = c
    matrix[..., i, j] = -s
    matrix[..., j, i] = s
    return matrix


def rotate_about(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotations [T, 3, 3] by angle [T] about a unit axis [3] (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.asarray(angle)[..., None, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def affine(
    rotation: np.ndarray | None = None,
    translation: Triple | None = None,
    size: Triple | None = None,
) -> np.ndarray:
    """4x4 maps x -> rotation (size * x) + translation; leading dimensions broadcast."""
    linear = np.eye(3) if rotation is None else np.asarray(rotation)
    if size is not None:
        linear = linear * np.asarray(size)[..., None, :]
    shift = np.zeros(3) if translation is None else np.asarray(translation, dtype=np.float64)
    lead = np.broadcast_shapes(linear.shape[:-2], shift.shape[:-1])
    matrix = np.zeros((*lead, 4, 4))
    matrix[..., :3, :3] = linear
    matrix[..., :3, 3] = shift
    matrix[..., 3, 3] = 1
    return matrix


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse of affine 4x4 maps; the last row stays exactly (0, 0, 0, 1)."""
    linear = np.linalg.inv(matrix[..., :3, :3])
    result = np.zeros_like(matrix)
    result[..., :3, :3] = linear
    result[..., :3, 3] = -(linear @ matrix[..., :3, 3:])[..., 0]
    result[..., 3, 3] = 1
    return result


def smooth_noise(rng: np.random.Generator, frames: int, channels: int, rate: float, waves: int = 4) -> np.ndarray:
    """Band-limited noise [T, channels] of unit variance: sums of sines of up to `rate` cycles per frame."""
    frequency = rate * rng.uniform(0.15, 1, (waves, channels))
    phase = rng.uniform(0, 2 * np.pi, (waves, channels))
    weight = rng.uniform(0.3, 1, (waves, channels)) / np.sqrt(frequency / rate)
    weight = weight / np.sqrt(0.5 * (weight**2).sum(0))
    t = np.arange(frames)[:, None, None]
    return (weight * np.sin(2 * np.pi * frequency * t + phase)).sum(1)


def ground_path(
    rng: np.random.Generator, frames: int, start: np.ndarray, heading: float, speed: float, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walk over the ground: (x, z) [T, 2], heading [T] and travelled distance [T].

    Goes along an arc that stays within `reach` metres of the start however long the clip is: nearly straight if the
    whole walk is shorter than that, else around a circle of that size.

    Args:
        rng: the scene's random numbers.
        frames: T.
        start: (x, z) at the first frame.
        heading: angle of the first step; 0 is +z, pi/2 is +x.
        speed: metres per frame.
        reach: metres.
    """
    travelled = speed * np.arange(frames)
    radius = reach / 2 if travelled[-1] > reach else reach * rng.uniform(1, 4)
    turn = travelled / radius * rng.choice([-1.0, 1.0])
    side = np.sign(turn[-1]) if frames > 1 and speed > 0 else 1.0
    direction = heading + turn
    x = start[0] + side * radius * (np.cos(heading) - np.cos(direction))
    z = start[1] + side * radius * (np.sin(direction) - np.sin(heading))
    return np.stack([x, z], -1), direction, travelled


def flight_path(rng: np.random.Generator, frames: int, start: np.ndarray, speed: float, reach: float) -> np.ndarray:
    """Smooth wander [T, 3] from `start` at about `speed` metres per frame, within `reach` metres of it."""
    rate = min(speed / (2 * np.pi * reach), 0.2)
    wander = smooth_noise(rng, frames, 3, rate) if frames > 1 else np.zeros((1, 3))
    offset = wander - wander[:1]
    drift = rng.normal(size=3) * np.array([1, 0.4, 1])
    drift = drift / np.linalg.norm(drift) * speed
    t = np.arange(frames)[:, None]
    bend = reach * np.sin(t * drift / reach)  # a straight line at first that turns back at reach
    scale = min(0.35 * reach, 3 * speed)
    return start + bend + np.clip(offset * scale, -reach, reach)
