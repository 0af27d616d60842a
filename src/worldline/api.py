"""The verbs: load_video, reconstruct, generate, synthesize, save, load, view, evaluate, train, systems."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from worldline.align.config import Priors
from worldline.align.prior_files import PriorFiles
from worldline.geometry import camera as camera_geometry
from worldline.io.ledger import sha256
from worldline.io.store import PartialRun
from worldline.io.store import load as load
from worldline.io.store import save as save
from worldline.io.video import VideoReader, parse_frames
from worldline.io.video import load_video as load_video
from worldline.scene import Progress, Scene4D, Tracks4D, Video, no_progress
from worldline.systems.registry import CARDS, Card, card, of_kind
from worldline.systems.system import Loading, Offload, Options, VideoSystem

if TYPE_CHECKING:
    from worldline.evaluation.report import Report
    from worldline.systems.more4d.depth import DepthPrior
    from worldline.training.stages import Recipe, Source
    from worldline.viewer.studio import Studio

AUTO = "auto"
PICTURE_SYSTEM = "more4d-mini"
AUTO_PRIOR = "motioncrafter-mini"
PARALLAX = "parallax"
REFINE = ("auto", PARALLAX, "none")
SMALLEST_SIDE_PX = 16


def systems() -> list[dict[str, Any]]:
    """Every system as a row: name, summary, kind, weights, licence, needs, installed, embedded, caution."""
    names = ("name", "summary", "kind", "weights", "licence", "needs", "installed", "embedded", "caution")
    return [{name: getattr(entry, name) for name in names} for entry in CARDS.values()]


def reconstruct(
    video: str | Path | Video,
    *,
    system: str = "auto",
    frames: slice | str | None = None,
    size: tuple[int, int] | None = None,
    window: int | None = None,
    overlap: int | None = None,
    device: str = "auto",
    seed: int = 0,
    weights: str | None = None,
    accept_license: bool = False,
    refine: str = "auto",
    focal_px: float | None = None,
    priors: Priors | PriorFiles | None = None,
    resume_beside: str | Path | None = None,
    progress: Progress = no_progress,
) -> Scene4D:
    """Turn a video into a 4D scene at `size`: points, scene flow and cameras in the world of the first camera.

    Args:
        video: path of a video, picture or folder of pictures, or frames in memory.
        system: a name from `systems()`; "auto" is the best that this machine runs without a download.
        frames: which frames, a slice or "start:stop:step".
        size: (H, W) to work at; default near what the system is made for, same aspect ratio, never enlarged.
        window, overlap: frames per window and frames that windows share; default the system's own.
        device: "auto" (CUDA, else MPS, else CPU) or a torch device.
        seed: for systems that draw random numbers.
        weights, accept_license: folder or hub repository of other weights, and whether their licence is accepted.
        refine: "parallax" takes the depth of any system as the prior of the parallax system; "none" leaves a system's
            scene as it is, for system "auto" that of its network; "auto": parallax for system "auto", none for others.
        focal_px: known focal length, in pixels of the source; principal point at its centre.
        priors: known intrinsics, poses, masks or scale, at the size worked at; or files of them, as of the original.
        resume_beside: output path; finished windows are kept beside it so that an interrupted run resumes.
        progress: receives (step, done, total).

    Raises:
        ValueError: for unknown systems, empty frame ranges, unusable sizes or non-finite pixels.
        FileNotFoundError: if there is no such video or no such weights.
    """
    # 1. What runs, and where.
    started, prior = time.perf_counter(), of_kind(AUTO_PRIOR if system == AUTO else system, "video")
    refined = _refined(system, refine)
    entry = card(PARALLAX) if refined else prior
    loading = Loading(device=choose_device(device), weights=weights, accept_license=accept_license)
    # 2. The frames, at the size the system works at, and what is known about them.
    source = video.size if isinstance(video, Video) else VideoReader(video).size
    clip = _frames(video, frames, check_size(source, size, entry))
    known = _with_focal(_read(priors, clip, source, frames), focal_px, source, clip.size)
    chosen: dict[str, Any] = {"window": window, "overlap": overlap, "seed": seed}
    chosen_system = {"system": system, "refine": refine, "weights": weights}
    settings = _settings(video, clip, **chosen_system, frames=str(frames), focal_px=focal_px, **chosen)
    settings |= {"priors": repr(priors)} if isinstance(priors, PriorFiles) else {}
    # 3. The scene, and how it was made.
    cache = None if resume_beside is None else PartialRun(Path(resume_beside), settings)
    options = Options(priors=known, cache=cache, progress=progress, **chosen)
    scene = (
        prior_and_parallax(clip, loading, options, prior) if refined else _reconstruct(entry, clip, loading, options)
    )
    return replace(scene, provenance=_provenance(scene, settings, started))


def _read(
    priors: Priors | PriorFiles | None, clip: Video, source: tuple[int, int], frames: slice | str | None
) -> Priors:
    """What is known about the chosen frames, read from files if need be."""
    if isinstance(priors, PriorFiles):
        return priors.read(clip, source, parse_frames(frames) if isinstance(frames, str) else frames)
    return priors or Priors()


def _refined(system: str, refine: str) -> bool:
    """Whether the parallax system takes the chosen system's depth as its prior."""
    if refine not in REFINE:
        raise ValueError(f"There is no refinement '{refine}'; choose one of: {', '.join(REFINE)}.")
    if refine == "auto":
        return system == AUTO
    return refine == PARALLAX and system != PARALLAX


def _reconstruct(entry: Card, clip: Video, loading: Loading, options: Options) -> Scene4D:
    return _video_system(entry, loading).reconstruct(clip, options)


def _video_system(entry: Card, loading: Loading) -> VideoSystem:
    loaded = entry.load(loading)
    assert isinstance(loaded, VideoSystem)
    return loaded


def prior_and_parallax(clip: Video, loading: Loading, options: Options, prior: Card | None = None) -> Scene4D:
    """The default system: what a network believes, corrected by the parallax it can be checked against.

    `clip` has the size to work at; `prior` is the network's system, by default the best embedded one, with the weights
    of `loading` and the windows of `options`. The scene is the parallax system's.
    """
    from worldline.geometry.pointmap import scene_depth
    from worldline.systems.parallax.infer import ParallaxConfig, infer

    # 1. The network's world, at the size it was trained for.
    entry = prior or card(AUTO_PRIOR)
    small = _frames(clip, None, working_size(clip.size, entry))
    network = _reconstruct(entry, small, loading, replace(options, priors=Priors()))
    # 2. Its depth as a prior, each frame up to scale.
    depth = scene_depth(network).where(network.valid, torch.nan)
    # 3. Cameras, depth and motion from flow, with that prior where flow says nothing.
    known: dict[str, Any] = {"priors": options.priors, "cache": options.cache, "progress": options.progress}
    scene = infer(clip, ParallaxConfig(pixels=None), prior=depth, **known)
    made_by = replace(scene.provenance, system=f"{PARALLAX}+{entry.name}")
    return replace(scene, provenance=replace(made_by, weights_sha256=network.provenance.weights_sha256))


def generate(
    picture: str | Path | Video,
    prompt: str = "",
    *,
    system: str = PICTURE_SYSTEM,
    depth: str | Path | DepthPrior = "auto",
    focal_px: float | None = None,
    download: bool = False,
    size: tuple[int, int] | None = None,
    device: str = "auto",
    weights: str | None = None,
    accept_license: bool = False,
    offload: Offload = "auto",
    progress: Progress = no_progress,
    **sampling: Any,
) -> Tracks4D:
    """Let a picture move: where each of its pixels goes, in the world of its camera, which stands still.

    Args:
        picture: path of a picture or video (its first frame is used), or frames in memory.
        prompt: what happens, as in "a brown bear walks across rocky terrain".
        system: one of kind "image" from `systems()`.
        depth: where the picture's depth comes from, see `pictures.depth_prior`.
        focal_px: known focal length in pixels of the picture.
        download: whether the depth prior's weights may be fetched.
        size: (H, W) of the tracks; default the system's. The picture is cropped to the model's shape, never stretched.
        device, weights, accept_license: as for `reconstruct`.
        offload: what of the networks is on the GPU at a time.
        progress: receives (step, done, total).
        **sampling: seed (other seeds are other futures), steps, guidance, ...: see `SamplingConfig`.

    Raises:
        ValueError: unknown names, a system of another kind, or a picture whose depth is not known.
        FileNotFoundError: there is no such picture, depth map or weights.
    """
    from worldline import pictures

    started, where = time.perf_counter(), choose_device(device)
    clip = picture.select([0]) if isinstance(picture, Video) else load_video(picture, frames=slice(0, 1))
    loading = Loading(device=where, weights=weights, accept_license=accept_license, offload=offload)
    model = pictures.picture_system(system, loading)
    prior = pictures.depth_prior(depth, where, download=download) if isinstance(depth, str | Path) else depth
    if focal_px is not None:
        prior = pictures.KnownFocal(prior=prior, focal_px=focal_px)
    tracks = model.generate(clip.rgb()[0], prompt, prior, size=size, progress=progress, **sampling)
    settings = _settings(picture, clip, system=system, depth=str(depth), focal_px=focal_px, weights=weights)
    settings["size"] = list(tracks.colors.shape[:2])
    return replace(tracks, provenance=_provenance(tracks, settings, started))


def synthesize(
    source: Tracks4D | Scene4D | str | Path,
    path: str | Path | Tensor = "orbit",
    *,
    frames: int | None = None,
    amount: float | None = None,
    fps: float | None = None,
    fill: Literal["model", "nearest"] = "model",
    system: str = PICTURE_SYSTEM,
    prompt: str | None = None,
    size: tuple[int, int] | None = None,
    device: str = "auto",
    weights: str | None = None,
    accept_license: bool = False,
    offload: Offload = "auto",
    progress: Progress = no_progress,
    **sampling: Any,
) -> Video:
    """Look at tracks or a scene from a camera that moves; what no point covers is made up.

    Args:
        source: what `generate` or `reconstruct` gave, or a folder of it.
        path: a name or file, see `pictures.camera_poses`, or poses cam2world in the source's world.
        frames: of the video; default those of a scene, 49 for tracks; time runs evenly through the source.
        amount: how far a named path goes.
        fps: of the video; default such that it takes as long as a scene does, 12 for tracks.
        fill: "model" inpaints with a system of kind "image"; "nearest" repeats the nearest pixel.
        system, device, weights, accept_license, offload: of the inpainting model.
        prompt: what is seen; default what tracks were generated with.
        size: (H, W) of the video; default the source's.
        progress: receives (step, done, total).
        **sampling: seed, steps, guidance, ...: see `SamplingConfig`.

    Raises:
        ValueError: unknown names, or nothing to see.
        FileNotFoundError: there is no such source, path file or weights.
    """
    from worldline import pictures
    from worldline.systems.more4d import infer

    source = source if isinstance(source, Scene4D | Tracks4D) else load(source)
    poses = pictures.camera_poses(source, path, frames, amount)
    stamps = pictures.timestamps(source, len(poses), fps)
    if fill == "nearest":
        video = infer.synthesize(source, poses, None, size=size, progress=progress)
    else:
        where = choose_device(device)
        loading = Loading(device=where, weights=weights, accept_license=accept_license, offload=offload)
        words = prompt if prompt is not None else str(source.provenance.settings.get("prompt", ""))
        model = pictures.picture_system(system, loading)
        video = model.synthesize(source, poses, prompt=words, size=size, progress=progress, **sampling)
    return replace(video, timestamps=stamps)


def check_synthesis(
    video: Video, source: Tracks4D | Scene4D, path: str | Path | Tensor, *, amount: float | None = None,
    device: str = "auto", progress: Progress = no_progress,
) -> dict[str, Any]:  # fmt: skip
    """Reconstruct a synthesised video; how far its cameras and depth are what it was rendered from.

    `path` and `amount` are what the video was made with; the numbers are those of `evaluation.consistency`.
    """
    from worldline import pictures

    poses = pictures.camera_poses(source, path, len(video), amount)
    found = reconstruct(video, device=device, progress=progress)
    return pictures.check(video, found, source, poses)


def train(
    name: str,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    source: Source | None = None,
    data: Sequence[str] = (),
    workers: int = 0,
    prior: str | Path | None = None,
    seed: int | None = None,
    fraction: float = 1.0,
    minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress = no_progress,
    **options: Any,
) -> Path | None:
    """Train a system into a folder; returns the file of its weights, or None if `minutes` were over before the end.

    Args:
        name: "motioncrafter-mini", ...; an unknown name is answered with the list.
        out: folder of checkpoints, loss curves and the weights.
        recipe: a recipe of your own for that system, in place of the named one; seed and options are then its own.
        source: (stage, model, device) -> batches by index; default: synthetic scenes.
        data: clip stores to train on, as STORE or STORE:RATIO, and mixture files; in place of a source.
        workers: processes that read stored clips ahead.
        prior: file of weights to begin with (safetensors, by the model's names, or of "motioncrafter-prior"); the rest
            begins random.
        seed: of everything random: weights, scenes, noise; default the recipe's own.
        fraction: part of the recipe's steps to do; 0.01 is a trial.
        minutes: wall time of this call; the next one with `resume` goes on where this one stopped, bit for bit.
        resume: continue what is in the folder.
        device: "auto" (CUDA, else CPU), "cpu" or "cuda".
        progress: receives (stage, steps done, steps in all).
        **options: keywords of the named recipe.

    Raises:
        ValueError: unknown names or options, or a folder that is not empty without `resume`, or of another run.
        FileNotFoundError: there is no such prior.
    """
    from worldline.systems.trainable import source_of, trainable
    from worldline.training.stages import noted, scaled

    # 1. What is trained.
    training, out = trainable(name), Path(out)
    if not resume and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; resume it (--resume), or choose another folder (--out).")
    chosen = options if seed is None else {"seed": seed, **options}
    plan = training.recipe_of(chosen) if recipe is None else recipe
    plan = plan if fraction == 1.0 else scaled(plan, fraction)
    if data:
        source, plan = source_of(training, data, workers), noted(plan, data=" ".join(data))
    where = choose_device(device if device != "auto" or torch.cuda.is_available() else "cpu")
    start = training.start(None if prior is None else Path(prior), plan, options)
    # 2. Train it, or go on.
    trained = training.run(plan, out, source=source, prior=start, minutes=minutes, device=str(where), progress=progress)
    if not trained.finished:
        return None
    # 3. Write what inference needs, and how it came about.
    about = _training_card(name, plan, options, fraction, None if prior is None else Path(prior))
    return training.export(trained.model, out / training.file, {**about, **training.card})


def _training_card(
    name: str, plan: Recipe, options: Mapping[str, Any], fraction: float, prior: Path | None
) -> dict[str, Any]:
    """What is known about freshly trained weights: recipe, seed, command, prior, stages, licence."""
    words = ["worldline", "train", name, "--seed", str(plan.seed), "--fraction", f"{fraction:g}"]
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        words += [flag] * value if isinstance(value, bool) else [flag, str(value)]
    known: dict[str, Any] = {"recipe": plan.name, "seed": plan.seed}
    notes = plan.stages[0].train.notes
    if "data" in notes:
        words += ["--data", *notes["data"].split()]
        known["data"] = notes["data"]
    if prior is not None:
        words += ["--prior", str(prior)]
        known["prior"] = {"file": prior.name, "sha256": sha256(prior)}
    stages = [stage.train.to_json() for stage in plan.stages]
    return {**known, "command": " ".join(words), "stages": stages, "license": "Apache-2.0"}


def evaluate(prediction: Scene4D, truth: Scene4D, protocol: str = "worldline-v1") -> Report:
    """Score a prediction against truth under a named protocol (see `docs/evaluation.md`).

    Raises:
        ValueError: there is no such protocol.
    """
    from worldline.evaluation import engine
    from worldline.evaluation.protocols import PROTOCOLS

    if protocol not in PROTOCOLS:
        raise ValueError(f"There is no protocol '{protocol}'; choose one of: {', '.join(PROTOCOLS)}.")
    return engine.evaluate(prediction, truth, PROTOCOLS[protocol])


def view(scene: Scene4D | str | Path, port: int = 8080) -> Studio:
    """Serve a scene to the browser at 127.0.0.1; `.url` is where, `.stop()` ends it, `.wait()` waits for Ctrl-C."""
    from worldline.viewer.studio import view as serve

    return serve(scene, port)


def choose_device(name: str) -> torch.device:
    """The torch device for a name; "auto" is CUDA, else MPS, else the CPU."""
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"There is no device '{name}'; use auto, cpu, cuda, cuda:N or mps.") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def working_size(source: tuple[int, int], entry: Card) -> tuple[int, int]:
    """(H, W) a system works at: near its area, the source's aspect ratio, multiples it likes, never enlarged."""
    height, width = source
    shrink = min(1.0, (entry.area / (height * width)) ** 0.5)
    return tuple(max(entry.multiple, round(side * shrink / entry.multiple) * entry.multiple) for side in source)


def check_size(source: tuple[int, int], size: tuple[int, int] | None, entry: Card) -> tuple[int, int]:
    """The (H, W) to work at; ValueError when the source or the size asked for is too small to see parallax in."""
    if min(source) < SMALLEST_SIDE_PX:
        raise ValueError(
            f"The video is {source[1]} pixels wide and {source[0]} high; "
            f"give one with at least {SMALLEST_SIDE_PX} on each side."
        )
    size = size or working_size(source, entry)
    if min(size) < SMALLEST_SIDE_PX:
        raise ValueError(f"The size {size[0]}x{size[1]} is too small; use at least {SMALLEST_SIDE_PX} on each side.")
    return size


def _frames(video: str | Path | Video, frames: slice | str | None, size: tuple[int, int]) -> Video:
    chosen = parse_frames(frames) if isinstance(frames, str) else frames
    if not isinstance(video, Video):
        return load_video(video, frames=chosen, size=size)
    kept = load_video(video.frames, frames=chosen, size=size)
    return replace(kept, timestamps=video.timestamps[chosen or slice(None)].double())


def _settings(video: str | Path | Video, clip: Video, **chosen: Any) -> dict[str, Any]:
    """Everything that decides the result, JSON-able: an interrupted run resumes only if all of it is the same."""
    return {**chosen, "size": list(clip.size), "source": "memory" if isinstance(video, Video) else str(video)}


def _with_focal(priors: Priors, focal_px: float | None, source: tuple[int, int], size: tuple[int, int]) -> Priors:
    """The priors with a focal length that was given in pixels of the source."""
    if focal_px is None:
        return priors
    if not focal_px > 0:
        raise ValueError(f"A focal length of {focal_px} pixels makes no sense; give a positive one.")
    intrinsics = camera_geometry.intrinsics_from_focal(float(focal_px), source)
    return replace(priors, intrinsics=camera_geometry.resize(intrinsics, source, size))


def _provenance(scene: Scene4D | Tracks4D, settings: Mapping[str, Any], started: float) -> Any:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return replace(
        scene.provenance,
        settings={**scene.provenance.settings, **settings},
        source=settings["source"],
        seconds=time.perf_counter() - started,
        peak_memory_bytes=peak if sys.platform == "darwin" else peak * 1024,
    )
