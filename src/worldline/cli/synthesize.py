"""`worldline synthesize`: tracks or a scene in, a video along a camera path out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from worldline.cli.console import note, progress_bar, result, result_json


@dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Look at generated tracks, or any reconstructed scene, from a moving camera; holes are inpainted."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder written by `worldline generate` or `worldline reconstruct`."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Video to write (.mp4, .mov, .mkv)."""
    path: str = "orbit"
    """Name (orbit, dolly_in, left, spiral, surrounding, mix1, ...) or file (JSON, TUM, COLMAP, nerfstudio)."""
    amount: float | None = None
    """How far a named path goes: degrees of orbit and pan, else a fraction of the distance."""
    frames: int | None = None
    """Frames of the video; default those of a scene, 49 for tracks."""
    fps: float | None = None
    """Frames per second; default as fast as the scene was, 12 for tracks."""
    fill: Literal["auto", "model", "nearest"] = "auto"
    """What fills holes: the model, or the nearest pixel; auto is the model where its weights are."""
    prompt: str | None = None
    """What is seen; default what tracks were generated with."""
    size: str | None = None
    """Size of the video, HEIGHTxWIDTH; default the source's."""
    system: str = "more4d-mini"
    """Whose inpainter."""
    steps: int | None = None
    """Steps of sampling."""
    guidance: float | None = None
    """How strictly the prompt is followed; 1 is not guided."""
    seed: int = 0
    """Of what is made up."""
    check: bool = False
    """Reconstruct the video again and say how far its cameras and depth are what it was made from."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    weights: str | None = None
    """File of `worldline train more4d-mini`, or folder of published weights."""
    accept_license: bool = False
    """Accept the licence of published weights."""
    offload: Literal["auto", "none", "model", "sequential", "sharded"] = "auto"
    """What of large networks is on the GPU at a time: all, one network, one block; or blocks on several GPUs."""
    overwrite: bool = False
    """Replace an existing video."""
    json: bool = False
    """Answer as JSON, draw no bars."""


arguments = Synthesize


def run(args: Synthesize) -> int:
    """Synthesise, write, check if asked."""
    from worldline import api
    from worldline.cli.reconstruct import parse_size
    from worldline.io.video import write_video

    # 1. Refuse early what would fail late.
    check_file(args.out, overwrite=args.overwrite)
    source = api.load(args.source)
    fill = _fill(args)
    sampling: dict[str, Any] = {"seed": args.seed, "steps": args.steps, "guidance": args.guidance}
    # 2. The video.
    with progress_bar(quiet=args.json) as progress:
        video = api.synthesize(
            source,
            args.path,
            frames=args.frames,
            amount=args.amount,
            fps=args.fps,
            fill=fill,
            system=args.system,
            prompt=args.prompt,
            size=parse_size(args.size),
            device=args.device,
            weights=args.weights,
            accept_license=args.accept_license,
            offload=args.offload,
            progress=progress,
            **{name: value for name, value in sampling.items() if value is not None},
        )
    write_video(args.out, video)
    # 3. Whether it can be understood.
    facts: dict[str, Any] = {"out": str(args.out), "frames": len(video), "fill": fill}
    facts |= {"height": video.size[0], "width": video.size[1], "fps": video.fps}
    if args.check:
        with progress_bar(quiet=args.json) as progress:
            facts["check"] = api.check_synthesis(
                video, source, args.path, amount=args.amount, device=args.device, progress=progress
            )
    if args.json:
        result_json(facts)
        return 0
    result(f"{args.out}: {len(video)} frames of {video.size[1]}x{video.size[0]}, holes filled by {fill}")
    for name, value in facts.get("check", {}).items():
        result(f"  {name:<22}{'not known' if value is None else f'{value:.3g}'}")
    return 0


def check_file(path: Path, *, overwrite: bool) -> None:
    """Find out before any work whether a video can be written to a path."""
    from worldline.io.atomic import check_parent
    from worldline.io.video import WRITABLE_SUFFIXES

    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ValueError(f"Cannot write {path}: its name must end in {', '.join(WRITABLE_SUFFIXES)}.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; choose another name, or allow --overwrite.")
    check_parent(path)


def _fill(args: Synthesize) -> Literal["model", "nearest"]:
    """What fills holes; where there is no model without asking anybody, the nearest pixel, and that is said."""
    from worldline.systems.registry import card

    if args.fill != "auto":
        return args.fill
    if card(args.system).embedded or args.weights is not None or args.accept_license:
        return "model"
    note(
        f"note: {args.system} has no embedded weights; holes are filled with the nearest pixel. "
        "Give --weights, or --fill model to fetch them."
    )
    return "nearest"
