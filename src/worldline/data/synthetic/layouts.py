"""Stages to play on: rooms, open ground and terrain, and where cameras and bodies may be in them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldline.data.synthetic import terrain
from worldline.data.synthetic.cameras import CameraPath
from worldline.data.synthetic.materials import Material, material

CLEARANCE = 0.45


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Background of a scene and where its camera may be; stage frame, metres.

    Attributes:
        kind: "room", "ground" or "terrain".
        centre: [3] middle of the room (of the play area in the open).
        half: [3] half sizes of the room or play area.
        paints: materials of floor, walls and ceiling (in the open only the first shows).
        waves: [K, 4] sines of the terrain, None elsewhere.
        start: [3] first camera position.
        focus: [3] what the first camera looks at.
        low: [3] lower bound of camera positions.
        high: [3] upper bound.
        far: depth beyond which there is sky.
        near_body: nearest distance of bodies.
        far_body: farthest distance of bodies.
    """

    kind: str
    centre: np.ndarray
    half: np.ndarray
    paints: tuple[Material, Material, Material]
    waves: np.ndarray | None
    start: np.ndarray
    focus: np.ndarray
    low: np.ndarray
    high: np.ndarray
    far: float
    near_body: float
    far_body: float

    def ground(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Y of the ground under (x, z)."""
        if self.waves is None:
            return np.zeros(np.shape(x))
        return terrain.height(self.waves, x, z)


@dataclass(frozen=True, kw_only=True)
class Placing:
    """What placing a body has to respect: the stage, the camera's positions [T, 3], its first pose and focal length."""

    stage: Stage
    camera: np.ndarray
    view: np.ndarray
    focal: float

    def spot(self, rng: np.random.Generator, near: float, far: float, spread: float = 0.8) -> np.ndarray:
        """Random (x, z) that the first camera looks over, log-uniform in distance."""
        depth = np.exp(rng.uniform(np.log(near), np.log(far)))
        across = rng.uniform(-spread, spread) * 0.5 / self.focal * depth
        forward, right = self.view[[0, 2], 2], self.view[[0, 2], 0]
        spot = self.view[[0, 2], 3] + depth * forward / np.linalg.norm(forward) + across * right
        if self.stage.kind == "room":
            margin = self.stage.half[[0, 2]] - 0.25
            spot = np.clip(spot, self.stage.centre[[0, 2]] - margin, self.stage.centre[[0, 2]] + margin)
        return spot

    def clear(self, path: np.ndarray, radius: float) -> bool:
        """Whether a body of this radius on the (x, z) path [T, 2] ([1, 2] for a still one) stays off every camera."""
        gap = np.linalg.norm(path - self.camera[:, [0, 2]], axis=-1)
        inside = True
        if self.stage.kind == "room" and len(path) > 1:
            inside = bool((np.abs(path - self.stage.centre[[0, 2]]) < self.stage.half[[0, 2]] - min(radius, 0.5)).all())
        return inside and bool(gap.min() > radius + CLEARANCE)


def sample_stage(rng: np.random.Generator, contrast: float) -> Stage:
    """A random stage: rooms and the open about equally often."""
    kind = str(rng.choice(["room", "ground", "terrain"], p=[0.46, 0.34, 0.2]))
    return {"room": _room, "ground": _ground, "terrain": _terrain}[kind](rng, contrast)


def _room(rng: np.random.Generator, contrast: float) -> Stage:
    half = np.array([rng.uniform(1.7, 4.5), rng.uniform(1.15, 1.8), rng.uniform(2.2, 5.5)])
    centre = np.array([0, -half[1], 0])
    start = np.array([rng.uniform(-0.5, 0.5), 0, -rng.uniform(0.45, 0.85)]) * half
    start[1] = -rng.uniform(0.8, min(1.9, 2 * half[1] - 0.3))
    focus = np.array([rng.uniform(-0.5, 0.5) * half[0], -rng.uniform(0.3, 1.4), rng.uniform(0.0, 0.6) * half[2]])
    pale = tuple(float(v) for v in 0.75 + 0.15 * rng.normal(size=3) * 0.4)
    floor = material(
        rng,
        base="brown",
        patterns=("wood", "tiles", "checks", "noise"),
        frequency=3.0,
        contrast=contrast,
        vary=0.6,
        tame=0.8,
    )
    wall = material(
        rng,
        base=pale,
        patterns=("noise", "noise", "stripes", "tiles"),
        frequency=1.2,
        contrast=0.6 * contrast,
        vary=0.3,
        aligned=True,
    )
    margin = np.array([0.35, 0.25, 0.35])
    return Stage(
        kind="room",
        centre=centre,
        half=half,
        paints=(
            replace(floor, rotation=np.eye(3)),
            wall,
            material(rng, base="white", frequency=0.8, contrast=0.4 * contrast),
        ),
        waves=None,
        start=start,
        focus=focus,
        low=centre - half + margin,
        high=centre + half - margin,
        far=1.0e4,
        near_body=1.0,
        far_body=float(1.8 * half[2]),
    )


def _open(rng: np.random.Generator, contrast: float, kind: str, waves: np.ndarray | None, height: float) -> Stage:
    base = ((0.25, 0.38, 0.12), "grey", "brown", (0.6, 0.55, 0.42))[int(rng.integers(4))]
    patterns = ("noise", "noise", "noise", "tiles", "checks") if kind == "ground" else ("noise",)
    floor = material(
        rng, base=base, patterns=patterns, frequency=2.5, contrast=contrast, vary=0.35, aligned=True, tame=0.9
    )
    lift = 0.0 if waves is None else float(terrain.height(waves, np.zeros(1), np.zeros(1))[0])
    start = np.array([0.0, lift - height, 0.0])
    yaw, reach = rng.uniform(-0.15, 0.15), rng.uniform(6, 14)
    focus = np.array(
        [np.sin(yaw) * reach, lift - rng.uniform(0.2, 1.2) - 0.35 * max(height - 1.6, 0), np.cos(yaw) * reach]
    )
    if waves is not None:
        focus[1] += float(terrain.height(waves, focus[:1], focus[2:])[0]) - lift
    return Stage(
        kind=kind,
        centre=np.array([0.0, 0.0, 12.0]),
        half=np.array([15.0, 6.0, 15.0]),
        paints=(floor, floor, floor),
        waves=waves,
        start=start,
        focus=focus,
        low=np.array([-40.0, start[1] - 5, -12.0]),
        high=np.array([40.0, lift - 0.6, 40.0]),
        far=float(rng.uniform(60, 90)),
        near_body=2.5,
        far_body=30.0,
    )


def _ground(rng: np.random.Generator, contrast: float) -> Stage:
    return _open(
        rng, contrast, "ground", None, float(rng.choice([rng.uniform(0.9, 2), rng.uniform(2, 6)], p=[0.7, 0.3]))
    )


def _terrain(rng: np.random.Generator, contrast: float) -> Stage:
    waves = []
    for length, amplitude in ((38.0, 1.8), (19.0, 0.8), (9.0, 0.3), (4.5, 0.1)):
        angle, wavelength = rng.uniform(0, 2 * np.pi), length * rng.uniform(0.8, 1.25)
        k = 2 * np.pi / wavelength
        waves.append(
            [amplitude * rng.uniform(0.4, 1.1), k * np.cos(angle), k * np.sin(angle), rng.uniform(0, 2 * np.pi)]
        )
    return _open(rng, contrast, "terrain", np.array(waves), float(rng.uniform(1.3, 4)))


def lift_above_ground(path: CameraPath, stage: Stage) -> CameraPath:
    """Raise the whole path by what it lacks to stay 0.7 m above the terrain."""
    position = path.cam2world[:, :3, 3]
    lack = (position[:, 1] - (stage.ground(position[:, 0], position[:, 2]) - 0.7)).max()
    if lack <= 0:
        return path
    cam2world = path.cam2world.copy()
    cam2world[:, 1, 3] -= lack
    return replace(path, cam2world=cam2world)
