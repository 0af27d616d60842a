"""`worldline reconstruct`: video in, 4D scene out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from worldline.cli.console import note, progress_bar, result, result_json

if TYPE_CHECKING:
    from worldline.align.prior_files import PriorFiles


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Turn a video into a 4D scene: points, scene flow and cameras of every frame in one world."""

    video: Annotated[Path, tyro.conf.Positional]
    """Video, animated picture, single picture, or folder of pictures."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write the scene to; must not exist yet, unless --overwrite."""
    system: str = "auto"
    """A name from `worldline systems`; auto is parallax with a network's depth where parallax says nothing: that of the
    embedded one, or on a CUDA GPU of the published one if its licence is accepted and its weights are here."""
    frames: str | None = None
    """Which frames, start:stop:step, for instance 0:100:2."""
    size: str | None = None
    """Size to work at, HEIGHTxWIDTH; by default near what the system is made for, same aspect ratio."""
    window: int | None = None
    """Frames per window."""
    overlap: int | None = None
    """Frames that consecutive windows share."""
    focal: float | None = None
    """Known focal length in pixels of the ORIGINAL video; estimated when not given."""
    intrinsics: tuple[float, float, float, float] | None = None
    """Known fx fy cx cy in pixels of the original, instead of --focal."""
    distortion: tuple[float, ...] | None = None
    """Known lens distortion k1 k2 p1 p2 [k3] (OpenCV) of the original; needs --intrinsics."""
    static_camera: bool = False
    """The camera does not move."""
    zoom: bool = False
    """The focal length changes during the video."""
    poses: Path | None = None
    """Known cameras of some or all frames: a text file of rows 'frame tx ty tz qx qy qz qw', camera to world."""
    masks: Path | None = None
    """Folder of pictures, one per frame, bright where something moves; those pixels do not decide cameras."""
    metric_depth: Path | None = None
    """Depth in metres, which makes the scene metric: a folder with one map per frame, or one file for the first frame;
    16-bit .png in millimetres or .npy in metres, 0 where unknown."""
    distance: tuple[float, float, float, float, float, float] | None = None
    """A measured distance, which makes the scene metric: FRAME X1 Y1 X2 Y2 METRES, in pixels of the original."""
    flow: Literal["none", "dis", "learned"] = "none"
    """Dense optical flow that steadies the cameras of systems that align windows; auto and parallax live on it, none is
    dis for them. learned takes several times longer than dis."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    seed: int = 0
    """For systems that draw random numbers."""
    weights: str | None = None
    """Folder or hub repository of other weights."""
    accept_license: bool = False
    """Accept the licence of published weights."""
    refine: str = "auto"
    """parallax corrects the depth of any system by what optical flow shows; none leaves a system's scene as it is, for
    auto that of its network; auto: parallax for auto, none for others."""
    overwrite: bool = False
    """Replace an existing scene once the new one is complete."""
    json: bool = False
    """Answer as JSON, draw no bars."""


arguments = Reconstruct


def run(args: Reconstruct) -> int:
    """Reconstruct, store, say what came out."""
    from worldline import api
    from worldline.io import store

    # 1. Refuse early what would fail late.
    store.check_output(args.out, overwrite=args.overwrite)
    size = parse_size(args.size)
    # 2. Reconstruct; finished windows are kept beside the output.
    try:
        with progress_bar(quiet=args.json) as progress:
            scene = api.reconstruct(
                args.video,
                system=args.system,
                frames=args.frames,
                size=size,
                window=args.window,
                overlap=args.overlap,
                focal_px=args.focal,
                priors=known(args),
                device=args.device,
                seed=args.seed,
                weights=args.weights,
                accept_license=args.accept_license,
                refine=args.refine,
                resume_beside=args.out,
                progress=progress,
            )
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"The same command resumes with the windows finished so far, in {args.out}.partial."
        ) from stop
    # 3. Store it whole, then forget the windows.
    store.save(scene, args.out, overwrite=args.overwrite)
    store.PartialRun(args.out, {}).discard()
    # 4. Say what came out.
    facts = store.info(args.out)
    if args.json:
        result_json(facts)
        return 0
    report = facts.get("report", {}) if isinstance(facts.get("report"), dict) else {}
    if "auto" in report:
        note(f"note: the network of auto is {report['auto']['network']}: {report['auto']['reason']}.")
    for warning in report.get("warnings", []):
        note(f"note: {warning}")
    result(
        f"{args.out}: {facts['frames']} frames of {facts['width']}x{facts['height']}, points"
        f"{', scene flow' if facts['has_scene_flow'] else ''}{', cameras' if facts['has_cameras'] else ''}, "
        f"in {facts['seconds']:.0f} s. Look at it: worldline view {args.out}"
    )
    return 0


def known(args: Reconstruct) -> PriorFiles | None:
    """What was said about the video; ValueError where it contradicts itself."""
    from worldline.align.prior_files import PriorFiles

    if args.focal is not None and args.intrinsics is not None:
        raise ValueError("--focal and --intrinsics both say the focal length; give one of them.")
    if args.distortion is not None and (args.intrinsics is None or not 4 <= len(args.distortion) <= 5):
        raise ValueError("--distortion needs --intrinsics and four or five coefficients, k1 k2 p1 p2 [k3].")
    wanted = {"--distortion": args.distortion, "--zoom": args.zoom}
    unused = [name for name, value in wanted.items() if value]
    if unused and args.system in ("auto", "parallax"):
        raise ValueError(
            f"The system {args.system} cannot use {', '.join(unused)}; choose one that aligns windows, "
            "for instance --system motioncrafter-mini."
        )
    given = PriorFiles(
        intrinsics=args.intrinsics,
        distortion=args.distortion,
        poses=args.poses,
        every_pose=args.poses is not None and args.system in ("auto", "parallax"),
        static_camera=args.static_camera,
        zoom=args.zoom,
        masks=args.masks,
        depth=args.metric_depth,
        distance=args.distance,
        flow=args.flow,
    )
    return None if given == PriorFiles() else given


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(H, W) from "HEIGHTxWIDTH"; ValueError says the form."""
    if text is None:
        return None
    height, separator, width = text.lower().partition("x")
    if not (separator and height.isdigit() and width.isdigit()):
        raise ValueError(f"--size {text} is not a size; write HEIGHTxWIDTH, for instance 192x320.")
    return int(height), int(width)
