"""A picture becomes tracks (4D-STraG), and tracks seen along a camera path become a video (4D-ViSM).

Different from the published program, deliberately: the picture is cropped, not stretched; depth and camera of the prior
are both used; motion guidance is on; the normalisation is undone with the constants it was made with; nothing goes
through files; holes are where no point falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldline.geometry.normalize import DepthGuidedMotion
from worldline.geometry.pointmap import from_depth
from worldline.scene import Cameras, Progress, Provenance, Scale, Scene4D, Tracks4D, Video, no_progress
from worldline.systems.more4d import flow, splatting
from worldline.systems.more4d.depth import DepthPrior
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.representation import (
    Fitted,
    along_edges,
    generator_conditions,
    inpainter_conditions,
    to_channels,
    to_maps,
)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a latent is sampled, and what is made of it.

    Attributes:
        steps, shift, guidance: of flow matching; guidance 1 does without the negative prompt.
        negative_prompt: what guidance leads away from.
        seed: of the noise.
        largest: displacements beyond this many frustum widths (or depths) are clamped: the decoder's outliers.
        fps: frames per second of the result.
        keep_rendered: put the rendering back over the inpainted video where points were seen.
    """

    steps: int = flow.STEPS
    shift: float = flow.SHIFT
    guidance: float = flow.GUIDANCE
    negative_prompt: str = ""
    seed: int = 0
    largest: float = 3.0
    fps: float = 8.0
    keep_rendered: bool = True


@torch.no_grad()
def generate(
    image: Float[Tensor, "h w 3"],
    prompt: str,
    model: MoRe4D,
    depth_prior: DepthPrior,
    config: SamplingConfig | None = None,
    *,
    size: tuple[int, int] | None = None,
    progress: Progress = no_progress,
    provenance: Provenance | None = None,
) -> Tracks4D:
    """Tracks of every pixel of a picture, in the frame of its camera, which stands still.

    Args:
        image: RGB in [0, 1]; its central part of the model's shape is used.
        prompt: what happens.
        model: the networks.
        depth_prior: guesses depth and camera.
        config: sampling; None: the published settings.
        size: (H, W) of the tracks; None: the model's. Motion is generated at the model's size and brought to the
            picture's pixels along its edges.
        progress: told the steps of sampling.
        provenance: of the result.

    Returns:
        Tracks of the picture's central part, in the unit of the depth prior; `reference` is 0.

    Raises:
        ValueError: the picture is not in [0, 1], its depth is unknown everywhere, or several steps are asked of a
            deterministic generator.
    """
    config = config or SamplingConfig()
    _check_picture(image)
    sizes = model.config

    # 1. the picture at the model's size and at that of the tracks, cropped
    small, large = Fitted.of(image, sizes.size), Fitted.of(image, size or sizes.size)

    # 2. where its pixels are
    guess = depth_prior(image)
    far, near = small.maps(guess.filled()), large.maps(guess.filled())
    camera = large.intrinsics(guess.intrinsics)

    # 3. the motion that the generator sees in it
    motion = _motion(model, small.image, far, prompt, config, progress).to(near)
    if size is not None and size != sizes.size:
        motion = along_edges(motion, small.image.to(motion), far.to(motion), large.image.to(motion), near.to(motion))

    # 4. tracks: the normalisation undone with the constants of training
    normalization = DepthGuidedMotion(
        reference=from_depth(near, camera), focal=_focal(model, camera, (near.shape[0], near.shape[1]))
    )
    points = normalization.invert(motion)

    # 5. what the camera, which stands still, sees of them
    provenance = provenance or Provenance(system="more4d", settings={**asdict(config), "prompt": prompt})
    return _standing(points, camera, large.image, config.fps, guess.scale, provenance)


def _motion(
    model: MoRe4D,
    image: Float[Tensor, "H W 3"],
    depth: Float[Tensor, "H W"],
    prompt: str,
    config: SamplingConfig,
    progress: Progress,
) -> Float[Tensor, "T H W 3"]:
    """Normalised motion of a picture at the model's size: zero at first, outliers clamped."""
    sizes, device = model.config, model.device
    if sizes.deterministic and config.steps != 1:
        raise ValueError(f"These weights answer in one step, without noise; ask for 1 in place of {config.steps}.")
    picture = (2 * image - 1).movedim(-1, 0)[None].to(device)
    conditions = generator_conditions(model.vae, picture, depth[None].to(device), sizes.frames, sizes.stills)
    velocity = _generator(model, conditions, picture, prompt, config)
    noise = _noise((1, sizes.vae.z_dim, *sizes.latent_size), config.seed, device)
    start = torch.zeros_like(noise) if sizes.deterministic else noise
    latent = flow.sample(
        velocity, start, steps=config.steps, shift=config.shift, step_name="generate", progress=progress
    )
    motion = to_maps(model.vae.decode(latent).float())[0].clamp(-config.largest, config.largest)
    return motion * (torch.arange(sizes.frames, device=device) > 0)[:, None, None, None]


def _check_picture(image: Tensor) -> None:
    if not (image.isfinite().all() and 0 <= float(image.min()) and float(image.max()) <= 1):
        raise ValueError("The picture must have values in [0, 1]; divide 8-bit values by 255.")


def _standing(
    points: Tensor, camera: Tensor, colors: Tensor, fps: float, scale: Scale, provenance: Provenance
) -> Tracks4D:
    """Tracks as a camera that stands still sees them."""
    frames, size = len(points), (points.shape[1], points.shape[2])
    poses = torch.eye(4, dtype=torch.float64, device=points.device).expand(frames, 4, 4)
    return Tracks4D(
        points=points,
        visible=splatting.seen_by(points, poses, camera),
        reference=0,
        colors=colors,
        timestamps=torch.arange(frames, dtype=torch.float64) / fps,
        cameras=Cameras(intrinsics=camera.expand(frames, 3, 3), cam2world=poses, size=size),
        scale=scale,
        provenance=provenance,
    )


def _focal(model: MoRe4D, camera: Tensor, size: tuple[int, int]) -> Float[Tensor, "2"]:
    """(fx, fy) of the normalisation, in widths and heights."""
    if model.config.focal is not None:
        return camera.new_tensor(model.config.focal)
    return torch.stack([camera[0, 0] / size[1], camera[1, 1] / size[0]])


def _noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Noise that depends on the seed alone, not on the device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _texts(model: MoRe4D, prompt: str, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    rows = model.embed_text([prompt, config.negative_prompt])
    return rows[:1], rows[1:]


def _generator(
    model: MoRe4D, conditions: Tensor, picture: Tensor, prompt: str, config: SamplingConfig
) -> flow.Velocity:
    """The generator as a velocity of the latent alone, guided by the text."""
    network = model.generator
    motion = network.look((picture + 1) / 2) if network.guided else None
    reference = None
    if model.config.generator.reference_tokens:
        reference = model.vae.encode_video(picture[:, :, None]).mean[:, :, 0]
        reference = reference * (model.config.reference == "picture")
    seen = None if model.image is None else model.image.grey(model.config.size).to(conditions)

    def told(text: Tensor) -> flow.Velocity:
        return lambda latent, t: network(
            torch.cat([latent.to(conditions), conditions], 1), t, text, seen, reference=reference, motion=motion
        )

    text, negative = _texts(model, prompt, config)
    return flow.guided(told(text), told(negative), config.guidance)


@torch.no_grad()
def synthesize(
    source: Tracks4D | Scene4D,
    path: Float[Tensor, "T 4 4"],
    model: MoRe4D | None,
    config: SamplingConfig | None = None,
    *,
    prompt: str = "",
    times: Sequence[int | float] | None = None,
    intrinsics: Float[Tensor, "3 3"] | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress = no_progress,
) -> Video:
    """A video of moving points along a camera path; what no point covers is inpainted.

    Args:
        source: generated tracks or any reconstructed scene.
        path: cam2world of each frame, in the source's world.
        model: the networks; None fills holes with the nearest pixel's colour.
        config: sampling; None: the published settings.
        prompt: what is seen.
        times: which time of the source each frame shows, between two of them for tracks; None spreads them evenly.
        intrinsics: of the cameras; None: the input camera's.
        size: (H, W) of the video; None: the source's.
        progress: told the steps of rendering and sampling.
    """
    config = config or SamplingConfig()

    # 1. the points seen along the path, and where none is
    if times is None:
        times = times_of(source, len(path))
    seen = splatting.render(source, path, times, intrinsics=intrinsics, size=size, progress=progress)

    # 2. the holes
    if model is None:
        filled = nearest(seen)
    else:
        filled = _in_windows(seen, source, model, prompt, config, progress)

    # 3. what was seen stays
    if config.keep_rendered:
        filled = torch.where(seen.coverage[..., None], seen.frames, filled)
    stamps = torch.arange(len(path), dtype=torch.float64) / config.fps
    return Video(frames=filled.clamp(0, 1), timestamps=stamps)


def times_of(source: Tracks4D | Scene4D, frames: int) -> list[float]:
    """Which time of a source each frame of a video shows: evenly from the first to the last; a scene's own times."""
    times = [i * (len(source) - 1) / max(frames - 1, 1) for i in range(frames)]
    return times if isinstance(source, Tracks4D) else [float(round(time)) for time in times]


def nearest(seen: splatting.Rendering) -> Float[Tensor, "T H W 3"]:
    """Holes filled with the colour of the nearest pixel that is covered; grey where a frame shows nothing."""
    from scipy.ndimage import distance_transform_edt

    out = []
    for frame, coverage in zip(seen.frames, seen.coverage, strict=True):
        if not bool(coverage.any()):
            out.append(torch.full_like(frame, 0.5))
            continue
        rows, columns = distance_transform_edt(~coverage.cpu().numpy(), return_distances=False, return_indices=True)
        out.append(frame[torch.from_numpy(rows).long(), torch.from_numpy(columns).long()])
    return torch.stack(out)


def windows(frames: int, window: int) -> list[slice]:
    """Ranges that cover a video; each but the first begins with the last quarter of the one before."""
    step = window - max(1, window // 4)
    starts = [0]
    while starts[-1] + window < frames:
        starts.append(starts[-1] + step)
    return [slice(start, min(start + window, frames)) for start in starts]


def _in_windows(
    seen: splatting.Rendering,
    source: Tracks4D | Scene4D,
    model: MoRe4D,
    prompt: str,
    config: SamplingConfig,
    progress: Progress,
) -> Float[Tensor, "T H W 3"]:
    """A video of any length inpainted; what a window filled is known to the next one."""
    frames, coverage, first = seen.frames.clone(), seen.coverage.clone(), splatting.colors_of(source, 0)
    for part in windows(len(frames), model.config.frames):
        filled = inpaint(frames[part], coverage[part], first, model, prompt, config, progress=progress)
        filled = _gaps_closed(frames[part], coverage[part], filled, model.config.size)
        known = coverage[part][..., None]
        frames[part] = filled if not config.keep_rendered else torch.where(known, frames[part], filled)
        coverage[part] = True
    return frames


def _gaps_closed(
    frames: Float[Tensor, "T H W 3"],
    coverage: Bool[Tensor, "T H W"],
    filled: Float[Tensor, "T H W 3"],
    size: tuple[int, int],
) -> Float[Tensor, "T H W 3"]:
    """What was filled, but with the nearest pixel in gaps so narrow that a model of some size does not see them.

    Between points of a stretched surface are holes of a pixel or two; a model of fewer pixels has known colours there
    and answers with a blur of them.
    """
    _, known = shrunk(frames, coverage, size)
    seen = functional.interpolate(known[:, None].float(), frames.shape[1:3], mode="nearest")[:, 0] > 0
    narrow = ~coverage & seen
    if not bool(narrow.any()):
        return filled
    close = nearest(splatting.Rendering(frames=frames, depth=coverage.float(), coverage=coverage))
    return torch.where(narrow[..., None], close, filled)


@torch.no_grad()
def inpaint(
    frames: Float[Tensor, "T H W 3"],
    coverage: Bool[Tensor, "T H W"],
    first: Float[Tensor, "h w 3"],
    model: MoRe4D,
    prompt: str,
    config: SamplingConfig,
    *,
    progress: Progress = no_progress,
) -> Float[Tensor, "T H W 3"]:
    """A video made by the inpainter from one with holes, no longer than the model's, at the size of the frames.

    Args:
        frames: in [0, 1].
        coverage: False in holes.
        first: the picture that models with an image encoder are shown.
        model: the networks.
        prompt: what is seen.
        config: sampling.
        progress: told the steps of sampling.
    """
    device, sizes = model.device, model.config
    short = sizes.frames - len(frames)
    video, known = shrunk(frames, coverage, sizes.size)
    video, known = (torch.cat([value, value[-1:].expand(short, *value.shape[1:])]) for value in (video, known))
    rendered = (2 * to_channels(video)[None] - 1).to(device)
    conditions = inpainter_conditions(model.vae, rendered, known[None, None].to(device))
    context = None
    if model.image is not None:
        context = model.image(first.movedim(-1, 0)[None].to(device))

    def told(text: Tensor) -> flow.Velocity:
        return lambda latent, t: model.inpainter(
            torch.cat([latent.to(conditions), conditions], 1), t, text, context, motion=None
        )

    text, negative = _texts(model, prompt, config)
    noise = _noise((1, sizes.vae.z_dim, *sizes.latent_size), config.seed + 1, device)
    velocity = flow.guided(told(text), told(negative), config.guidance)
    latent = flow.sample(
        velocity, noise, steps=config.steps, shift=config.shift, step_name="synthesize", progress=progress
    )
    inpainted = (model.vae.decode_video(latent).float()[0].movedim(0, 1) + 1) / 2
    own = functional.interpolate(inpainted[: len(frames)], frames.shape[1:3], mode="bilinear", align_corners=False)
    return own.movedim(1, -1).to(frames)


def shrunk(
    frames: Float[Tensor, "T H W 3"], coverage: Bool[Tensor, "T H W"], size: tuple[int, int]
) -> tuple[Float[Tensor, "T h w 3"], Bool[Tensor, "T h w"]]:
    """A rendering at another size: colours averaged over covered pixels only, covered where at least half is."""
    weight = coverage[:, None].to(frames)
    resize = lambda value: functional.interpolate(value, size, mode="area")  # noqa: E731
    share = resize(weight)
    colors = resize(frames.movedim(-1, 1) * weight) / share.clamp(min=1e-6)
    known = share[:, 0] >= 0.5
    return (colors * known[:, None]).movedim(1, -1), known
