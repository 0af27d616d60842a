"""What Geo4D adds to `training.stages`: how modalities join, and clips, synthetic or mixed from several sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data.mixture import Mixture as StoredMixture
from worldline.geometry import pointmap
from worldline.systems import flow_input
from worldline.systems.geo4d import representation as rep
from worldline.systems.geo4d.networks import Geo4D, build, widened
from worldline.systems.geo4d.objective import Clips, target_latents
from worldline.systems.geo4d.recipes import Recipe, Stage
from worldline.training import stages
from worldline.training.clips import clip_flow
from worldline.training.config import scene_seeds
from worldline.training.loop import Batches

Source = stages.Source[Stage, Geo4D]

SCENE_FPS = 24.0
"""Frame rate of synthetic scenes."""

GOLDEN = (5**0.5 - 1) / 2

FEWEST_VALID = 0.02
"""Clips with less than this share of valid pixels teach nothing about geometry."""


def _networks(recipe: Recipe) -> Geo4D:
    """The networks of the first stage's modalities."""
    return build(recipe.networks.with_modalities(recipe.stages[0].modalities))


def _begin(model: Geo4D, stage: Stage, start: stages.Start) -> Geo4D:
    if stage.modalities != model.config.modalities:
        narrower = not set(model.config.modalities) <= set(stage.modalities)
        model = _anew(model, stage) if narrower else widened(model, stage.modalities)
    if stage.points_from_vae:
        model.start_points_from_vae()
    if stage.measure_latents:
        factor = start.measured("scaling_factor", lambda: _latent_scale(model, start))
        model.config = _with_scale(model.config, factor)
    if stage.encoder is not None:
        stages.load_weights(model, stages.read_prior(stage.encoder))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.trains(name))
    model.train()
    model.unet.gradient_checkpointing = stage.train.gradient_checkpointing
    return model


def _latent_scale(model: Geo4D, start: stages.Start) -> float:
    """What latents are multiplied by to have unit variance."""
    model.config = _with_scale(model.config, 1.0)
    batches = start.batches(model)
    latents = [target_latents(model, batches(index).pictures).flatten() for index in range(stages.MEASURED_BATCHES)]
    return round(1 / float(torch.cat(latents).std()), 5)


def _anew(model: Geo4D, stage: Stage) -> Geo4D:
    """A new U-Net for fewer modalities beside the autoencoders (they were trained on all, the U-Net not yet)."""
    fresh = build(model.config.with_modalities(stage.modalities)).to(next(model.parameters()).device)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("unet.")}
    stages.load_weights(fresh, kept)
    return fresh


def _with_scale(config: Any, scale: float) -> Any:
    return replace(config, vae=replace(config.vae, scaling_factor=scale))


def synthetic(stage: Stage, model: Geo4D, device: str) -> Batches:
    """Clips of synthetic scenes, rendered when they are asked for; the batch index decides scenes, size and stride."""
    from worldline.data.synthetic import RenderConfig, SensorConfig, render_batch

    sensor = SensorConfig.video() if stage.clips.video else SensorConfig()
    config, gain = RenderConfig(sensor=sensor), model.config.moment_gain
    reads_flow = model.config.optical_flow

    def batch(index: int) -> Clips:
        chosen, size = stage.clips.view(index), stage.clips.size(index)
        rendered = render_batch(
            scene_seeds(stage.train, index), frames=chosen[-1] + 1, size=size, device=device, config=config
        )
        return to_clips(rendered, chosen, gain, flow_seed=_flow_seed(stage, index) if reads_flow else None)

    return batch


def _flow_seed(stage: Stage, index: int) -> int:
    return (stage.train.seed * 1_000_003 + index) % 2**63


def stored(mixture: StoredMixture, workers: int = 0) -> Source:
    """Clips of stores in the recipe's sizes and strides; the batch index decides which.

    Args:
        mixture: which stores, in which proportion.
        workers: processes that read ahead.
    """
    from worldline.data.loader import Loader, LoaderConfig, View

    def source(stage: Stage, model: Geo4D, device: str) -> Batches:
        views = tuple(
            View(frames=frames, stride=stride, size=size)
            for frames, stride in stage.clips.views
            for size in stage.clips.sizes
        )
        plan = LoaderConfig(views=views, batch_size=stage.train.batch_size, seed=stage.train.seed,
                            least_valid=FEWEST_VALID, workers=workers)  # fmt: skip
        loader, gain, reads_flow = Loader(mixture, plan), model.config.moment_gain, model.config.optical_flow

        def batch(index: int) -> Clips:
            loaded = loader(index).to(device)
            chosen = list(range(loaded.rgb.shape[1]))
            clips = to_clips(loaded, chosen, gain, flow_seed=_flow_seed(stage, index) if reads_flow else None)
            return replace(clips, fps=loaded.fps)

        return batch

    return source


def to_clips(rendered: Any, chosen: list[int], moment_gain: float = 1.0, *, flow_seed: int | None = None) -> Clips:
    """The chosen frames of rendered truth as training clips; clips with nothing in them are replaced by their likes.

    Args:
        rendered: a batch with truth (`SyntheticBatch`, or what the loader gives).
        chosen: frames of the clips.
        moment_gain: of the model.
        flow_seed: also give exact optical flow between the chosen frames, spoilt by this seed; None: no flow.

    Raises:
        ValueError: no clip of the batch shows anything.
    """
    valid = rendered.valid[:, chosen]
    usable = torch.nonzero(valid.flatten(1).float().mean(1) >= FEWEST_VALID)[:, 0]
    if len(usable) == 0:
        raise ValueError("No clip of this batch shows a surface; leave the scenes of sky out.")
    take = usable[torch.arange(len(valid), device=usable.device) % len(usable)]
    points, valid, cam2world = rendered.points[take][:, chosen], valid[take], rendered.cam2world[take][:, chosen]
    pictures = rep.to_pictures(points, valid, rendered.intrinsics[take][:, chosen], cam2world, moment_gain=moment_gain)
    unit = torch.stack([box.scale for box in pictures.boxes])
    depth = torch.stack([pointmap.depth_of(clip, pose) for clip, pose in zip(points, cam2world, strict=True)])
    stride = chosen[1] - chosen[0] if len(chosen) > 1 else 1
    return Clips(
        frames=rendered.rgb[take][:, chosen],
        pictures=pictures,
        distance=depth / unit[:, None, None, None],
        fps=torch.full((len(take),), SCENE_FPS / stride, device=points.device),
        flow=None if flow_seed is None else _spoilt_flow(rendered, take, chosen, flow_seed),
    )


def _spoilt_flow(rendered: Any, take: Tensor, chosen: list[int], seed: int) -> Float[Tensor, "B T 6 H W"]:
    """Channels of the exact optical flow from each chosen frame to its neighbours, made worse as estimates are."""
    whole = (rendered.points, rendered.scene_flow, rendered.flow_valid, rendered.intrinsics, rendered.cam2world)
    pairs = [clip_flow(*clip, chosen) for clip in zip(*whole, strict=True)]
    scene_flow, known = (torch.stack(pieces)[take] for pieces in zip(*pairs, strict=True))
    points, valid = rendered.points[take][:, chosen], rendered.valid[take][:, chosen]
    cameras = rendered.intrinsics[take][:, chosen], rendered.cam2world[take][:, chosen]
    generator = torch.Generator(points.device).manual_seed(seed)
    noise = flow_input.FlowNoise()
    maps = flow_input.from_truth(points, scene_flow, valid, known, *cameras, noise, generator)
    return maps.movedim(-1, 2)


def mixture(sources: Mapping[str, Source], ratios: Mapping[str, float]) -> Source:
    """A source that draws each batch from one of several, as often as the ratios say, decided by the batch index.

    Multiples of the golden ratio spread evenly, so shares hold in short stretches too, not only on average.

    Raises:
        ValueError: names that do not agree, or ratios that are not positive.
    """
    if set(sources) != set(ratios) or any(ratio <= 0 for ratio in ratios.values()):
        raise ValueError("A mixture needs one positive ratio for each of its sources.")
    names, total = list(sources), sum(ratios.values())
    edges = [sum(ratios[name] for name in names[: place + 1]) / total for place in range(len(names))]

    def pick(index: int) -> str:
        place = (index + 0.5) * GOLDEN % 1.0
        return next((name for name, edge in zip(names, edges, strict=True) if place < edge), names[-1])

    def mixed(stage: Stage, model: Geo4D, device: str) -> Batches:
        batches = {name: source(stage, model, device) for name, source in sources.items()}

        def batch(index: int) -> Any:
            return batches[pick(index)](index)

        return batch

    return mixed


METHOD = stages.Method(build=_networks, begin=_begin, source=synthetic)

run = partial(stages.run, METHOD)
"""`stages.run` of Geo4D's recipes."""
