"""Random scenes: one seed becomes one complete description of a moving scene, in numpy on the CPU.

The description does not depend on the device or on the other scenes of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from worldline.data.synthetic import clutter, layouts, movers
from worldline.data.synthetic.bodies import Body, Part
from worldline.data.synthetic.cameras import CameraPath, camera_path
from worldline.data.synthetic.captions import caption
from worldline.data.synthetic.categories import CATEGORIES, Category, draw
from worldline.data.synthetic.layouts import Stage
from worldline.data.synthetic.lighting import Lighting, sample_lighting


@dataclass(frozen=True, kw_only=True)
class SceneSpec:
    """A moving scene, complete.

    Attributes:
        seed: what it was drawn from.
        category: one of categories.NAMES.
        stage: background and bounds.
        bodies: everything that stands or moves in it; object id i + 1 is bodies[i].
        cam2world: [T, 4, 4] in the stage frame.
        focal: [T] focal lengths relative to the image width.
        lighting: light, sky and haze.
        caption: one sentence about what happens.
    """

    seed: int
    category: str
    stage: Stage
    bodies: tuple[Body, ...]
    cam2world: np.ndarray
    focal: np.ndarray
    lighting: Lighting
    caption: str

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return len(self.cam2world)


def sample_scene(seed: int, *, frames: int | None = None, category: str | None = None) -> SceneSpec:
    """Draw a scene.

    Args:
        seed: any non-negative integer; the same seed, frames and category give the same scene.
        frames: T, None for the category's default.
        category: one of categories.NAMES, None for a random one of the training mix.

    Raises:
        ValueError: for an unknown category, a negative seed or fewer than one frame.
    """
    if frames is not None and frames < 1:
        raise ValueError(f"A synthetic clip needs at least one frame, got {frames}.")
    if seed < 0:
        raise ValueError(f"The seed of a synthetic clip must not be negative, got {seed}.")
    rng = np.random.Generator(np.random.Philox(key=int(seed)))
    name = draw(rng, category)
    style = CATEGORIES[name]
    length = frames or style.frames
    contrast = float(rng.uniform(*style.contrast))
    stage = layouts.sample_stage(rng, contrast)
    path, focal = _sample_camera(rng, style, stage, length)
    tempo = float(np.exp(rng.uniform(np.log(1 / 24), np.log(1 / 8))))
    placing = layouts.Placing(
        stage=stage, camera=path.cam2world[:, :3, 3], view=path.cam2world[0], focal=float(focal[0])
    )
    moving = movers.sample_movers(rng, style, placing, length, tempo * style.speed, contrast)
    still = clutter.sample_clutter(rng, style, placing, moving, contrast)
    return SceneSpec(
        seed=int(seed),
        category=name,
        stage=stage,
        bodies=(*moving, *still),
        cam2world=path.cam2world,
        focal=focal,
        lighting=sample_lighting(rng, stage.kind, stage.centre, stage.half),
        caption=caption(moving, stage.kind, path),
    )


def at_frames(spec: SceneSpec, frames: Sequence[int]) -> SceneSpec:
    """The same scene seen at some of its frames only; scene flow then runs from each of them to the next."""
    chosen = list(frames)

    def of(part: Part) -> Part:
        return part if len(part.pose) == 1 else replace(part, pose=part.pose[chosen])

    bodies = tuple(replace(body, parts=tuple(map(of, body.parts))) for body in spec.bodies)
    return replace(spec, bodies=bodies, cam2world=spec.cam2world[chosen], focal=spec.focal[chosen])


def _sample_camera(
    rng: np.random.Generator, style: Category, stage: Stage, frames: int
) -> tuple[CameraPath, np.ndarray]:
    kind = str(rng.choice(list(style.cameras)))
    pace = float(np.exp(rng.uniform(np.log(0.01), np.log(0.12)))) * (0.6 if stage.kind == "room" else 1.5)
    path = camera_path(
        rng,
        kind,
        frames,
        start=stage.start,
        focus=stage.focus,
        speed=pace * min(style.speed, 3.0),
        low=stage.low,
        high=stage.high,
    )
    if stage.waves is not None:  # keep the camera above the hills it flies over
        path = layouts.lift_above_ground(path, stage)
    view = np.deg2rad(rng.uniform(42, 78))
    return path, path.zoom * 0.5 / np.tan(view / 2)
