"""`worldline generate`: a picture in, moving points out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from worldline.cli.console import note, progress_bar, result, result_json


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Let a picture move: where every pixel of it goes. Look at it with `worldline view` and `worldline synthesize`."""

    image: Annotated[Path, tyro.conf.Positional]
    """Picture; of a video, its first frame."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write the tracks to; must not exist yet, unless --overwrite."""
    prompt: str = ""
    """What happens, as in "a brown bear walks across rocky terrain"."""
    system: str = "more4d-mini"
    """A system that turns pictures into tracks, see `worldline systems`."""
    depth: str = "auto"
    """Its depth: auto (embedded), a depth map (.npy, .npz, .png), unidepth, moge, transformers:NAME, or a system."""
    download: bool = False
    """Let the depth prior fetch its weights."""
    focal: float | None = None
    """Known focal length in pixels of the picture; else what the depth prior believes."""
    size: str | None = None
    """Size of the tracks, HEIGHTxWIDTH; the picture is cropped to the model's shape."""
    steps: int | None = None
    """Steps of sampling."""
    guidance: float | None = None
    """How strictly the prompt is followed; 1 is not guided."""
    seed: int = 0
    """Other seeds are other futures, of weights that sample; more4d-mini knows one, the mean of what may happen."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    weights: str | None = None
    """File of `worldline train more4d-mini`, or folder of published weights."""
    accept_license: bool = False
    """Accept the licence of published weights."""
    offload: Literal["auto", "none", "model", "sequential", "sharded"] = "auto"
    """What of large networks is on the GPU at a time: all, one network, one block; or blocks on several GPUs."""
    overwrite: bool = False
    """Replace existing tracks once the new ones are complete."""
    json: bool = False
    """Answer as JSON, draw no bars."""


arguments = Generate


def run(args: Generate) -> int:
    """Generate, store, say what came out."""
    from worldline import api
    from worldline.cli.reconstruct import parse_size
    from worldline.io import store

    store.check_output(args.out, overwrite=args.overwrite)
    chosen: dict[str, Any] = {"seed": args.seed, "steps": args.steps, "guidance": args.guidance}
    with progress_bar(quiet=args.json) as progress:
        tracks = api.generate(
            args.image,
            args.prompt,
            system=args.system,
            depth=args.depth,
            download=args.download,
            focal_px=args.focal,
            size=parse_size(args.size),
            device=args.device,
            weights=args.weights,
            accept_license=args.accept_license,
            offload=args.offload,
            progress=progress,
            **{name: value for name, value in chosen.items() if value is not None},
        )
    store.save(tracks, args.out, overwrite=args.overwrite)
    facts = store.info(args.out)
    if args.json:
        result_json(facts)
        return 0
    if facts["unreliable"]:
        note(f"note: {args.system} did not beat a trivial predictor at: {', '.join(facts['unreliable'])}.")
    result(
        f"{args.out}: {facts['frames']} times of {facts['width']}x{facts['height']} points, {facts['seconds']:.0f} s. "
        f"Look at them: worldline view {args.out}, or worldline synthesize {args.out} --path orbit -o video.mp4"
    )
    return 0
