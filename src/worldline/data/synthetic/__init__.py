"""Moving scenes with exact truth: an analytic ray-caster that is deterministic by seed."""

from __future__ import annotations

from worldline.data.synthetic.categories import NAMES as CATEGORY_NAMES
from worldline.data.synthetic.clip import RenderConfig, SyntheticBatch, render_batch, render_clip, render_specs
from worldline.data.synthetic.sampling import SceneSpec, at_frames, sample_scene
from worldline.data.synthetic.sensor import SensorConfig

__all__ = [
    "CATEGORY_NAMES",
    "RenderConfig",
    "SceneSpec",
    "SensorConfig",
    "SyntheticBatch",
    "at_frames",
    "render_batch",
    "render_clip",
    "render_specs",
    "sample_scene",
]
