"""`worldline data curate`: videos into training samples of moving pictures (dense tracks, captions, quality gates)."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from worldline.cli.console import note, progress_bar, result, result_json
from worldline.data.curate.config import CurateConfig, FollowConfig, GateConfig, RuleConfig

if TYPE_CHECKING:
    from worldline.data.curate.language import LanguageJudge
    from worldline.data.curate.pipeline import Tools
    from worldline.data.curate.tracked import Tracked
    from worldline.scene import Video


@dataclass(frozen=True, kw_only=True)
class Curate:
    """Turn videos into training samples: tracks of the first frame, a caption, quality gates, a report."""

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Videos, or folders of them."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write to; a run into the folder of an interrupted one goes on with it."""
    limit: int | None = None
    """Take only the first so many videos."""
    frames: int = 49
    """Frames of a clip; shorter videos are left out."""
    stride: int = 1
    """Take every n-th frame."""
    size: str = "384x512"
    """Grid of points over the first frame, HEIGHTxWIDTH; the published data has 384x512."""
    work_size: str | None = None
    """Size to reconstruct at, HEIGHTxWIDTH; by default what the system is made for."""
    system: str = "auto"
    """Which system reconstructs, see `worldline systems`."""
    tracks: Path | None = None
    """Use the tracks in this folder, NAME.npz for each video, in place of a system."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    weights: str | None = None
    """Folder or hub repository of other weights."""
    accept_license: bool = False
    """Accept the licence of published weights."""
    endpoint: str | None = None
    """Ask a model behind this OpenAI-compatible address for captions, such as http://127.0.0.1:8000/v1; frames of the
    videos are sent there. Without it rules judge, and captions come from a template."""
    model: str | None = None
    """The model there that sees and describes."""
    judge_model: str | None = None
    """The model there that reads the description and judges; by default the same."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, if the endpoint wants one."""
    prompts: Path | None = None
    """Other prompts: Markdown with the headings # caption, # countable and # again."""
    timeout: float = 120.0
    """Seconds to wait for one answer."""
    retries: int = 4
    """Further attempts after time-outs and busy answers."""
    questions: int = 4
    """Clips that the model is asked about at once."""
    layout: Literal["both", "released", "compact"] = "both"
    """Write the published files, our compact record, or both."""
    archives: bool = False
    """Also pack the published files, 50 samples to an archive."""
    keep_cache: bool = False
    """Keep the tracks of finished clips, so that other gates can be tried without tracking again."""
    gates: GateConfig = field(default_factory=GateConfig)
    rules: RuleConfig = field(default_factory=RuleConfig)
    follow: FollowConfig = field(default_factory=FollowConfig)
    json: bool = False
    """Answer as JSON, draw no bars."""


arguments = Curate


def run(args: Curate) -> int:
    """Curate, write the report, say what came out."""
    from worldline.cli.reconstruct import parse_size
    from worldline.data.curate import pipeline, report, sources
    from worldline.io.atomic import check_parent

    # 1. Refuse early what would fail late.
    size = parse_size(args.size)
    assert size is not None
    config = CurateConfig(
        frames=args.frames,
        stride=args.stride,
        size=size,
        layout=args.layout,
        archives=args.archives,
        keep_cache=args.keep_cache,
        gates=args.gates,
        rules=args.rules,
    )
    if args.limit is not None and args.limit < 1:
        raise ValueError("--limit must be at least 1.")
    if args.archives and args.layout == "compact":
        raise ValueError("--archives packs the published files, which --layout compact does not write.")
    if args.out.exists() and not args.out.is_dir():
        raise FileExistsError(f"{args.out} is a file; give a folder.")
    check_parent(args.out / "samples")
    videos = sources.find(args.videos, args.limit)
    tools = _tools(args)
    # 2. Clip after clip.
    try:
        with progress_bar(quiet=args.json) as progress:
            clips = pipeline.run(videos, args.out, tools, config, progress)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("The same command goes on where this one stopped.") from stop
    # 3. The report, and archives of what was kept.
    if config.archives:
        from worldline.data.curate.release import pack

        kept = [clip["id"] for clip in clips if clip["outcome"] == "kept"]
        pack(args.out / "samples", kept, args.out / "archives", config.archive_samples)
    found = report.summary(clips, config, _settings(args))
    report.write_report(args.out, found)
    # 4. Say what came out.
    if args.json:
        result_json({name: found[name] for name in ("videos", "outcomes", "gates", "bytes", "record_error")})
        return 0
    for clip in clips:
        if clip["outcome"] in ("damaged", "unjudged", "untracked"):
            note(f"{clip['source']}: {clip['outcome']}: {clip['why']}")
    told = ", ".join(f"{count} {name}" for name, count in found["outcomes"].items() if count)
    result(f"{args.out}: {told}. Look at it: {args.out / 'report.html'}")
    return 0


def _settings(args: Curate) -> dict[str, Any]:
    """Everything asked for, for the report; of the key only where it came from."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items() if k not in ("json", "videos")}


def _tools(args: Curate) -> Tools:
    """Tracker, renderer and judge of a run."""
    from worldline.data.curate.given import GivenTracks
    from worldline.data.curate.pipeline import Tools
    from worldline.render.splat import splat

    judge = _judge(args)
    if args.tracks is not None:
        if not args.tracks.is_dir():
            raise FileNotFoundError(f"There is no folder {args.tracks} with tracks.")
        given = GivenTracks(folder=args.tracks)
        return Tools(track=given, tracker=given.identity, splat=splat, judge=judge, questions=args.questions)
    identity = {
        "system": args.system,
        "size": args.work_size,
        "weights": args.weights,
        "follow": asdict(args.follow),
    }
    return Tools(
        track=_reconstructing(args), tracker=lambda name: identity, splat=splat, judge=judge, questions=args.questions
    )


def _reconstructing(args: Curate) -> Any:
    """A tracker that reconstructs the clip and follows the pixels of its first frame."""
    from worldline import api
    from worldline.cli.reconstruct import parse_size
    from worldline.data.curate.follow import follow_scene

    size = parse_size(args.work_size)
    api.card(api.PARALLAX if args.system == api.AUTO else args.system)  # refuse unknown names before any work

    def track(name: str, video: Video, grid: tuple[int, int]) -> Tracked:
        scene = api.reconstruct(
            video,
            system=args.system,
            size=size,
            device=args.device,
            weights=args.weights,
            accept_license=args.accept_license,
        )
        return follow_scene(scene, grid, config=args.follow)

    return track


def _judge(args: Curate) -> LanguageJudge | None:
    """The language model, asked once whether it is there."""
    if args.endpoint is None:
        if args.model or args.judge_model:
            raise ValueError("--model needs --endpoint, the address of an OpenAI-compatible server.")
        return None
    if args.model is None:
        raise ValueError("--endpoint needs --model, the name of a model there that sees pictures.")
    from worldline.data.curate.endpoint import Endpoint
    from worldline.data.curate.language import LanguageJudge, read_prompts

    endpoint = Endpoint(
        url=args.endpoint,
        api_key=os.environ.get(args.api_key_env) or None,
        timeout_seconds=args.timeout,
        retries=args.retries,
    )
    judge = LanguageJudge(
        endpoint=endpoint, model=args.model, reader=args.judge_model, prompts=read_prompts(args.prompts)
    )
    endpoint.check()
    return judge
