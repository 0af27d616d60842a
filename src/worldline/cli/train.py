"""`worldline train`: train an embedded system on synthetic scenes, in chunks that resume."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from worldline.cli.console import note, progress_bar, result, result_json


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every training can be told."""

    minutes: float | None = None
    """Stop after this time, with a checkpoint; by default run to the end."""
    resume: bool = False
    """Continue what is in the folder."""
    data: tuple[str, ...] = ()
    """Train on stored clips, not on synthetic ones: STORE or STORE:RATIO of each, or files of `worldline data mix`."""
    workers: int = 0
    """Processes that read stored clips ahead."""
    prior: Path | None = None
    """Weights to begin with (.safetensors, by the names of the model); what they lack begins random."""
    fraction: float = 1.0
    """Part of the recipe's steps to do; 0.01 is a trial."""
    threads: int | None = None
    """CPU threads; on a busy machine 1 is faster than 2."""
    device: str = "auto"
    """auto, cpu or cuda."""
    json: bool = False
    """Answer as JSON, draw no bars."""


@dataclass(frozen=True, kw_only=True)
class MotionCrafterMini(Common):
    """Train the embedded MotionCrafter from nothing on synthetic scenes; call again with --resume to go on."""

    out: Path = Path("runs/motioncrafter-mini")
    """Folder for checkpoints, loss curves and the finished mini.safetensors."""
    seed: int = 7
    """Of everything random: weights, scenes, noise."""
    strategy: Literal["all", "decoder", "original", "scratch"] = "all"
    """What stage 1 trains of the geometry VAE; original, decoder and scratch are about one that starts from --prior."""
    normalization: Literal["mean", "max"] = "mean"
    """What world points are divided by: their mean or their largest distance."""
    fusion: Literal["unify", "separate", "offset", "none"] = "unify"
    """How the motion latent relates to the geometry latent."""
    paradigm: Literal["deterministic", "denoising"] = "deterministic"
    """One pass, or denoising with seeds that disagree where the network is unsure."""
    last_stage: bool = False
    """Only the last stage, on a finished checkpoint that --prior names."""


@dataclass(frozen=True, kw_only=True)
class MotionCrafterPrior(Common):
    """Train a picture VAE and a video denoiser: what `motioncrafter-mini --prior` can start from."""

    out: Path = Path("runs/motioncrafter-prior")
    """Folder for checkpoints, loss curves and the finished prior.safetensors."""
    seed: int = 5
    """Of everything random: weights, scenes, noise."""


@dataclass(frozen=True, kw_only=True)
class Geo4DMini(Common):
    """Train the embedded Geo4D from nothing on synthetic scenes; call again with --resume to go on."""

    out: Path = Path("runs/geo4d-mini")
    """Folder for checkpoints, loss curves and the finished mini.safetensors."""
    seed: int = 11
    """Of everything random: weights, scenes, noise."""
    direct: bool = True
    """At last, regression without noise, as the weights in the package had it; without, a sampler that denoises."""


@dataclass(frozen=True, kw_only=True)
class MoRe4DMini(Common):
    """Train the embedded-size MoRe4D from nothing on synthetic scenes; call again with --resume to go on."""

    out: Path = Path("runs/more4d-mini")
    """Folder for checkpoints, loss curves and the finished mini.safetensors."""
    seed: int = 11
    """Of everything random: weights, scenes, noise."""


@dataclass(frozen=True, kw_only=True)
class FlowMini(Common):
    """Train the embedded optical flow from nothing on synthetic pairs; call again with --resume to go on."""

    out: Path = Path("runs/flow-mini")
    """Folder for checkpoints, loss curves and the finished mini.safetensors."""
    seed: int = 17
    """Of everything random: weights, scenes."""


arguments = {
    "motioncrafter-mini": MotionCrafterMini,
    "motioncrafter-prior": MotionCrafterPrior,
    "geo4d-mini": Geo4DMini,
    "more4d-mini": MoRe4DMini,
    "flow-mini": FlowMini,
}


def run(args: Any) -> int:
    """Train, then export when every stage is done."""
    import torch

    from worldline import api

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    name = next(name for name, kind in arguments.items() if type(args) is kind)
    chosen = {entry.name: getattr(args, entry.name) for entry in fields(args)}
    own = {key: value for key, value in chosen.items() if key not in ("json", "threads")}
    with progress_bar(quiet=args.json) as progress:
        weights = api.train(name, progress=progress, **own)
    if weights is None:
        note("worldline: not finished; the same command with --resume continues.")
    if args.json:
        answer = {"finished": weights is not None, "out": str(args.out)}
        result_json(answer if weights is None else {**answer, "weights": str(weights)})
    elif weights is not None:
        result(f"trained: {weights}")
    return 0
