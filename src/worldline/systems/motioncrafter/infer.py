"""MotionCrafter on a video of any length and size: observe overlapping windows, align them, one scene.

Each window comes out in its own normalised world (its first camera's axes, its own centre and unit), which says nothing
about cameras; `align.solve` finds the similarity of every window and the cameras (the published code concatenates the
windows as they are).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from worldline import windows
from worldline.align import solve as alignment
from worldline.align.config import AlignConfig, Priors
from worldline.align.observation import Observation
from worldline.align.streaming import StreamedWindows
from worldline.flow.neighbours import flow_between
from worldline.geometry import pointmap
from worldline.scene import Progress, Provenance, Scene4D, Video, no_progress
from worldline.systems import flow_input
from worldline.systems.motioncrafter import sampling
from worldline.systems.motioncrafter.conditioning import Padding, clip_pixels
from worldline.systems.motioncrafter.networks import MotionCrafter
from worldline.systems.motioncrafter.representation import to_maps
from worldline.systems.offload import placed


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """How a video is worked through; None means what the model was made for.

    Attributes:
        window: frames per window.
        overlap: frames shared by neighbouring windows; at least 1, or nothing ties them together.
        steps: denoising steps (denoising paradigm only).
        seeds: one run per seed (denoising paradigm only); several give a per-pixel spread, hence confidence.
        chunk: frames encoded or decoded at once; changes memory, not results.
        max_pixels: larger frames are shrunk to this area for the networks, and their maps enlarged again without mixing
            surfaces; None works at the frames' own size.
        device: where networks run; another device than the model's moves each network there only while it works.
        optical_flow: let networks that read optical flow see it; False: they work from the colours alone.
        flow_pixels: area that frames are shrunk to before their flow is estimated.
        spread: disagreement between seeds, relative to the window's mean distance, that halves the confidence.
        align: how windows become one world.
    """

    window: int | None = None
    overlap: int | None = None
    steps: int = 5
    seeds: tuple[int, ...] = (0,)
    chunk: int = 8
    max_pixels: int | None = None
    device: str | None = None
    optical_flow: bool = True
    flow_pixels: int = 192 * 256
    spread: float = 0.05
    align: AlignConfig = AlignConfig()


DEFAULTS = InferConfig()
NO_PRIORS = Priors()
UNKNOWN = Provenance(system="motioncrafter")


@runtime_checkable
class WindowCache(Protocol):
    """Keeps finished windows, so that an interrupted run continues (`io.store.PartialRun`)."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was put under this key, or None."""
        ...

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors under this key."""
        ...


def infer(
    video: Video,
    model: MotionCrafter,
    config: InferConfig = DEFAULTS,
    *,
    cache: WindowCache | None = None,
    progress: Progress = no_progress,
    priors: Priors = NO_PRIORS,
    provenance: Provenance = UNKNOWN,
) -> Scene4D:
    """Reconstruct a video: world points, scene flow and a camera for every frame, at the video's size.

    Raises:
        ValueError: windows that do not overlap, or priors that do not fit the video.
    """
    # 1. overlapping windows
    plan = window_plan(len(video), model, config)
    # 2. what the networks see in each: point map and scene flow in the window's own world
    observations = observe_all(model, video, plan, config, cache, progress)
    # 3. one world, and a camera for every frame
    aligned = alignment.solve(observations, len(video), video.size, priors, config.align, progress, shelf=cache)
    # 4. the scene, and how it was made
    settings = {**provenance.settings, "steps": config.steps, "seeds": list(config.seeds), "windows": len(plan)}
    settings["paradigm"] = model.config.paradigm
    return aligned.scene(video, replace(provenance, settings=settings))


def observe_all(
    model: MotionCrafter, video: Video, plan: list[range], config: InferConfig, cache: WindowCache | None,
    progress: Progress,
) -> Sequence[Observation]:  # fmt: skip
    """Every window; with a cache they stay there and are read again when asked for, so that memory does not grow."""

    def fetch(k: int) -> Observation:
        return _cached(cache, plan[k], partial(observe_window, model, video, plan[k], config))

    kept = []
    for done in range(len(plan)):
        progress("windows", done, len(plan))
        made = fetch(done)
        kept += [made] if cache is None else []
    progress("windows", len(plan), len(plan))
    return kept if cache is None else StreamedWindows(fetch, len(plan))


def window_plan(num_frames: int, model: MotionCrafter, config: InferConfig) -> list[range]:
    """The windows of a video; they overlap, as nothing else says how two windows lie to one another.

    Raises:
        ValueError: more than one window without overlap, or windows that `windows.plan` refuses.
    """
    window = model.config.window if config.window is None else config.window
    overlap = min(model.config.overlap, window - 1) if config.overlap is None else config.overlap
    if overlap < 1 and num_frames > window:
        raise ValueError(f"Windows of {window} frames over {num_frames} need an overlap of at least 1 to be joined.")
    return windows.plan(num_frames, window, overlap)


def observe_window(model: MotionCrafter, video: Video, window: range, config: InferConfig) -> Observation:
    """`observe` on some frames of a video; only these become floats."""
    return observe(model, video.select(list(window)).rgb(), config, frames=tuple(window))


@torch.inference_mode()
def observe(
    model: MotionCrafter,
    rgb: Float[Tensor, "T H W 3"],
    config: InferConfig = DEFAULTS,
    *,
    frames: tuple[int, ...] | None = None,
) -> Observation:
    """What the model says about one window of frames in [0, 1]; float32 on the CPU, at the frames' size.

    Points are in the window's normalised world. Scene flow of the window's last frame is marked not valid: it leads out
    of the window, and no training loss ever looked at it.
    """
    size = (rgb.shape[1], rgb.shape[2])
    device = _device(model, config)
    # 1. frames the networks can halve: shrunk if too large, padded, never stretched
    images = flow_input.shrunk(rgb.movedim(-1, 1), config.max_pixels) * 2 - 1
    padding = Padding.to_multiple((images.shape[-2], images.shape[-1]), model.config.size_multiple)
    images = padding.apply(_with_flow(images, rgb, config) if model.config.optical_flow else images)
    # 2. what the U-Net is told: RGB latents and one image token per frame
    condition = encode_rgb(model, images, device, config.chunk)
    tokens = encode_tokens(model, images[:, :3], device, config.chunk)
    # 3. joint latents and their maps, for each seed
    seeds = config.seeds if model.config.paradigm == "denoising" else config.seeds[:1]
    runs = []
    for seed in seeds:
        with placed(model.unet, device):
            latents = sampling.predict(model, condition[None], tokens[None], steps=config.steps, seed=seed)[0]
        runs.append([to_maps(padding.crop(maps)) for maps in decode(model, latents, device, config.chunk)])
    points, flow = (torch.stack(maps) for maps in zip(*runs, strict=True))  # [seeds, T, H, W, 3]
    # 4. one answer, as certain as the seeds agree
    confidence = _confidence(points, config.spread)
    return _observation(points.median(0).values, flow.median(0).values, confidence, size, frames)


def encode_rgb(
    model: MotionCrafter, images: Float[Tensor, "T K H W"], device: torch.device, chunk: int
) -> Float[Tensor, "T C h w"]:
    """Condition latents of frames in [-1, 1] with their flow channels, if any: posterior mean, unscaled.

    In the VAE's own precision.
    """
    dtype = model.rgb_vae.quant_conv.weight.dtype
    with placed(model.rgb_vae, device):
        return torch.cat([model.rgb_vae.encode(part.to(device, dtype)).mode() for part in images.split(chunk)])


def encode_tokens(
    model: MotionCrafter, images: Float[Tensor, "T 3 H W"], device: torch.device, chunk: int
) -> Float[Tensor, "T D"]:
    """One image token per frame in [-1, 1]; resized a few frames at a time."""
    dtype, size = next(model.image_encoder.parameters()).dtype, model.config.image_encoder.image_size
    with placed(model.image_encoder, device):
        parts = [clip_pixels(part.to(device).float(), size, chunk).to(dtype) for part in images.split(chunk)]
        return torch.cat([model.image_encoder(part).image_embeds for part in parts])


def decode(
    model: MotionCrafter, latents: Float[Tensor, "T C h w"], device: torch.device, chunk: int
) -> tuple[Float[Tensor, "T 3 H W"], Float[Tensor, "T 3 H W"]]:
    """Points and scene flow of scaled joint latents, on the CPU; in the precision of the decoders."""
    dtype = next(model.vae.parameters()).dtype
    with placed(model.vae, device):
        parts = [
            model.vae.decode_joint((part.to(device).float() / model.config.scaling_factor).to(dtype))
            for part in latents.split(chunk)
        ]
        points, flow = zip(*parts, strict=True)
        return torch.cat([part.float().cpu() for part in points]), torch.cat([part.float().cpu() for part in flow])


def _with_flow(
    images: Float[Tensor, "T 3 h w"], rgb: Float[Tensor, "T H W 3"], config: InferConfig
) -> Float[Tensor, "T 9 h w"]:
    """Frames for the networks and the channels of their optical flow, which is estimated from larger frames."""
    size = (images.shape[-2], images.shape[-1])
    large = flow_input.shrunk(rgb.movedim(-1, 1), config.flow_pixels).movedim(1, -1)
    if not config.optical_flow or min(large.shape[1:3]) < flow_input.SMALLEST:
        return torch.cat([images, images.new_zeros(len(images), flow_input.CHANNELS, *size)], dim=1)
    return torch.cat([images, flow_input.estimated(flow_between(large), size).to(images)], dim=1)


def _confidence(points: Float[Tensor, "S T H W 3"], half: float) -> Float[Tensor, "T H W"]:
    """1 / (1 + (spread/half)^2): spread = standard deviation over seeds, in units of the window's mean distance."""
    if len(points) == 1:
        return torch.ones(points.shape[1:-1])
    middle = points.mean(0)
    unit = (middle - middle.mean((0, 1, 2))).norm(dim=-1).mean().clamp(min=1e-8)
    spread = (points - middle).square().sum(-1).mean(0).sqrt() / unit
    return 1 / (1 + (spread / half) ** 2)


def _observation(
    points: Tensor, flow: Tensor, confidence: Tensor, size: tuple[int, int], frames: tuple[int, ...] | None
) -> Observation:
    """Maps at the network's size -> an observation at the video's, every pixel still a pixel of one surface."""
    known = torch.isfinite(points).all(-1) & torch.isfinite(flow).all(-1)
    if (points.shape[1], points.shape[2]) != size:
        channels = torch.cat([flow, confidence[..., None].expand_as(flow)], dim=0)
        moved, _ = pointmap.resize(channels, torch.cat([known, known]), size)
        points, known = pointmap.resize(points, known, size)
        flow, confidence = moved[: len(points)], moved[len(points) :, ..., 0]
    flow_valid = known.clone()
    flow_valid[-1] = False
    return Observation(
        frames=tuple(range(len(points))) if frames is None else frames,
        points=torch.where(known[..., None], points, 0),
        confidence=confidence * known,
        scene_flow=torch.where(flow_valid[..., None], flow, 0),
        flow_valid=flow_valid,
    )


def _cached(cache: WindowCache | None, window: range, make: Callable[[], Observation]) -> Observation:
    """A finished window of an earlier run, or a new one."""
    key = f"window-{window.start:06d}-{window.stop:06d}"
    kept = None if cache is None else cache.get(key)
    if kept is not None:
        return Observation(frames=tuple(window), **kept)
    made = make()
    if cache is not None:
        names = ("points", "confidence", "scene_flow", "flow_valid")
        cache.put(key, {name: getattr(made, name) for name in names})
    return made


def _device(model: MotionCrafter, config: InferConfig) -> torch.device:
    return next(model.unet.parameters()).device if config.device is None else torch.device(config.device)
