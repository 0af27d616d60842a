"""Clips with truth: one as a Scene4D, many as a training batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldline.data.synthetic.lens import image_velocity
from worldline.data.synthetic.pack import Tables, pack, world_poses
from worldline.data.synthetic.raycast import Steps, cast
from worldline.data.synthetic.sampling import SceneSpec, sample_scene
from worldline.data.synthetic.sensor import SensorConfig, expose
from worldline.data.synthetic.shading import Surface
from worldline.data.synthetic.truth import follow
from worldline.scene import Cameras, Provenance, Scene4D, Video

FPS = 24.0
PIXELS_PER_CHUNK = 1 << 15  # a float tensor of this size and its neighbours stay in a core's cache


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """How scenes are rendered.

    Attributes:
        compile: fuse the ray-caster with torch.compile (slow first call per image size, then several times faster).
        shadows: cast a shadow ray per pixel.
        sensor: exposure, noise and tone errors of a real camera; None for a perfect one.
        tracks: also follow every pixel of the reference frame through time.
        reference: the frame that tracks start from.
    """

    compile: bool = False
    shadows: bool = True
    sensor: SensorConfig | None = None
    tracks: bool = False
    reference: int = 0


@dataclass(frozen=True, kw_only=True)
class SyntheticBatch:
    """Rendered clips with exact truth; world = first camera of each clip, metres, sky pixels hold zeros.

    Attributes:
        rgb: [B, T, H, W, 3] in [0, 1].
        points: [B, T, H, W, 3] world points.
        depth: [B, T, H, W] z-depth.
        valid: [B, T, H, W] a surface was hit.
        sky: [B, T, H, W] nothing was hit.
        scene_flow: [B, T, H, W, 3] world displacement to the next frame; zero at the last.
        flow_valid: [B, T, H, W] valid and not the last frame.
        dynamic: [B, T, H, W] the surface belongs to something that moves during the clip.
        object_id: [B, T, H, W] 0 background, 1... bodies, -1 sky.
        normals: [B, T, H, W, 3] world unit normals, towards the outside.
        intrinsics: [B, T, 3, 3] pixels.
        cam2world: [B, T, 4, 4].
        captions: one sentence per clip.
        categories: category of each clip.
        seeds: seed of each clip.
        tracks: [B, T, H, W, 3] world position at each time of what the reference frame sees; None unless asked for.
        visible: [B, T, H, W] whether the camera of that time sees it; None unless asked for.
    """

    rgb: Float[Tensor, "B T H W 3"]
    points: Float[Tensor, "B T H W 3"]
    depth: Float[Tensor, "B T H W"]
    valid: Bool[Tensor, "B T H W"]
    sky: Bool[Tensor, "B T H W"]
    scene_flow: Float[Tensor, "B T H W 3"]
    flow_valid: Bool[Tensor, "B T H W"]
    dynamic: Bool[Tensor, "B T H W"]
    object_id: Int[Tensor, "B T H W"]
    normals: Float[Tensor, "B T H W 3"]
    intrinsics: Float[Tensor, "B T 3 3"]
    cam2world: Float[Tensor, "B T 4 4"]
    captions: tuple[str, ...]
    categories: tuple[str, ...]
    seeds: tuple[int, ...]
    tracks: Float[Tensor, "B T H W 3"] | None = None
    visible: Bool[Tensor, "B T H W"] | None = None

    def __len__(self) -> int:
        return len(self.rgb)

    def to(self, device: torch.device | str) -> SyntheticBatch:
        """The batch on another device."""
        tensors: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)


@cache
def _steps(compiled: bool) -> Steps:
    return Steps.fused() if compiled else Steps.plain()


def _render_one(specs: Sequence[SceneSpec], tables: Tables, size: tuple[int, int], config: RenderConfig) -> Surface:
    """All frames of scenes with one background, in chunks of frames that stay in cache on a CPU."""
    frames = specs[0].frames
    steps = _steps(config.compile)
    on_cpu = tables.frame.device.type == "cpu"
    stride = max(1, PIXELS_PER_CHUNK // (size[0] * size[1])) if on_cpu and not config.compile else frames
    chunks = [
        cast(steps, tables.frames(start, min(start + stride, frames)), size, shadows=config.shadows)
        for start in range(0, frames, stride)
    ]
    return chunks[0] if len(chunks) == 1 else Surface(*(torch.cat(parts, 1) for parts in zip(*chunks, strict=True)))


def _groups(specs: Sequence[SceneSpec], device: torch.device) -> list[list[int]]:
    """Scenes rendered together: one by one on a CPU (no padding, same bits in every batch), by background on a GPU."""
    if device.type == "cpu":
        return [[i] for i in range(len(specs))]
    kinds = sorted({spec.stage.kind for spec in specs})
    return [[i for i, spec in enumerate(specs) if spec.stage.kind == kind] for kind in kinds]


def _cameras(specs: Sequence[SceneSpec], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    poses = torch.stack([torch.from_numpy(world_poses(spec)) for spec in specs])
    intrinsics = torch.zeros(*poses.shape[:2], 3, 3, dtype=torch.float64)
    focal = torch.stack([torch.from_numpy(spec.focal) for spec in specs]) * size[1]
    intrinsics[..., 0, 0], intrinsics[..., 1, 1], intrinsics[..., 2, 2] = focal, focal, 1
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = (size[1] - 1) / 2, (size[0] - 1) / 2
    return intrinsics.float(), poses.float()


def _recorded(
    surface: Surface, intrinsics: Tensor, cam2world: Tensor, seeds: Sequence[int], sensor: SensorConfig | None
) -> Tensor:
    """Colours [B, T, H, W, 3] as the camera records them."""
    if sensor is None:
        return surface.rgb
    velocity = None
    if sensor.shutter > 0:
        clips = zip(surface.points, surface.sky, surface.scene_flow, intrinsics, cam2world, strict=True)
        velocity = torch.stack([image_velocity(*clip) for clip in clips])
    return expose(surface.rgb, seeds, sensor, velocity)


def render_batch(
    seeds: Sequence[int],
    *,
    frames: int = 8,
    size: tuple[int, int] = (64, 96),
    category: str | None = None,
    device: torch.device | str = "cpu",
    config: RenderConfig | None = None,
) -> SyntheticBatch:
    """Render one clip per seed.

    Args:
        seeds: non-negative integers; a seed gives the same bits on the same device whatever else is in the batch.
        frames: T.
        size: (H, W).
        category: one of categories.NAMES for all clips, None for a random one each.
        device: where to render.
        config: how to render.

    Raises:
        ValueError: for no seeds, an unknown category, no frames or an empty image.
    """
    config, device = config or RenderConfig(), torch.device(device)
    if not len(seeds) or min(size) < 1:
        raise ValueError(f"render_batch needs seeds and a positive image size, got {len(seeds)} seeds and size {size}.")
    specs = [sample_scene(seed, frames=frames, category=category) for seed in seeds]
    return render_specs(specs, size=size, device=device, config=config)


def render_specs(
    specs: Sequence[SceneSpec], *, size: tuple[int, int], device: torch.device | str, config: RenderConfig
) -> SyntheticBatch:
    """Render scene descriptions with the same number of frames; see `render_batch`."""
    device = torch.device(device)
    surfaces: list[Surface | None] = [None] * len(specs)
    tracks: list[tuple[Tensor, Tensor] | None] = [None] * len(specs)
    for group in _groups(specs, device):
        members = [specs[i] for i in group]
        tables = pack(members, size, device)
        surface = _render_one(members, tables, size, config)
        followed = follow(_steps(False), tables, surface, members, config.reference) if config.tracks else None
        for place, i in enumerate(group):
            surfaces[i] = Surface(*(value[place] for value in surface))
            tracks[i] = None if followed is None else (followed[0][place], followed[1][place])
    joined = Surface(*(torch.stack(values) for values in zip(*surfaces, strict=True)))  # type: ignore[arg-type]
    intrinsics, cam2world = (value.to(device) for value in _cameras(specs, size))
    rgb = _recorded(joined, intrinsics, cam2world, [spec.seed for spec in specs], config.sensor)
    flow_valid = ~joined.sky
    flow_valid[:, -1] = False
    return SyntheticBatch(
        rgb=rgb,
        points=joined.points,
        depth=joined.depth,
        valid=~joined.sky,
        sky=joined.sky,
        scene_flow=joined.scene_flow,
        flow_valid=flow_valid,
        dynamic=joined.moving,
        object_id=joined.object_id,
        normals=joined.normals,
        intrinsics=intrinsics,
        cam2world=cam2world,
        captions=tuple(spec.caption for spec in specs),
        categories=tuple(spec.category for spec in specs),
        seeds=tuple(spec.seed for spec in specs),
        tracks=torch.stack([t[0] for t in tracks if t is not None]) if config.tracks else None,
        visible=torch.stack([t[1] for t in tracks if t is not None]) if config.tracks else None,
    )


def render_clip(
    seed: int,
    *,
    frames: int | None = 16,
    size: tuple[int, int] = (64, 96),
    category: str | None = None,
    device: torch.device | str = "cpu",
    config: RenderConfig | None = None,
) -> Scene4D:
    """Render one clip with its truth, tracks included.

    Args:
        seed: non-negative integer.
        frames: T, None for the category's own length.
        size: (H, W).
        category: one of categories.NAMES, None for a random one.
        device: where to render.
        config: how to render; `tracks` is always on here.

    Returns:
        A metric Scene4D whose extras are "sky" bool, "object_id" (-1 sky, 0 background), "dynamic" bool, "normals",
        "tracks" (world positions at every time of what the reference frame, by default the first, sees) and
        "visible_from_reference" bool, each [T, H, W, ...].

    Raises:
        ValueError: as `render_batch`.
    """
    if min(size) < 1:
        raise ValueError(f"A synthetic clip needs a positive image size, got {size}.")
    config = config or RenderConfig()
    config = replace(config, tracks=True)
    spec = sample_scene(seed, frames=frames, category=category)
    batch = render_specs([spec], size=size, device=device, config=config)
    assert batch.tracks is not None and batch.visible is not None
    settings = {"seed": spec.seed, "frames": spec.frames, "size": list(size), "category": spec.category}
    settings |= {"background": spec.stage.kind, "reference": config.reference, "caption": spec.caption}
    return Scene4D(
        video=Video(frames=batch.rgb[0], timestamps=torch.arange(spec.frames, dtype=torch.float64) / FPS),
        points=batch.points[0],
        valid=batch.valid[0],
        cameras=Cameras(intrinsics=batch.intrinsics[0], cam2world=batch.cam2world[0], size=size),
        scene_flow=batch.scene_flow[0],
        flow_valid=batch.flow_valid[0],
        scale="metric",
        provenance=Provenance(system="truth", settings=settings, source=f"synthetic:{spec.category}:{spec.seed}"),
        extras={
            "sky": batch.sky[0],
            "object_id": batch.object_id[0],
            "dynamic": batch.dynamic[0],
            "normals": batch.normals[0],
            "tracks": batch.tracks[0],
            "visible_from_reference": batch.visible[0],
        },
    )
