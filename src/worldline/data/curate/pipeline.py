"""A curation run, clip by clip: read, judge, track, measure, render, write; each stage is kept until the clip is done.

OUT/samples/<id>...      the kept samples: published files, compact record, or both
OUT/clips/<id>.json      what happened to each clip, kept or not; written last, so a clip with one is finished
OUT/sheets/<id>.png      contact sheets
OUT/index.json           the id of each clip's content
OUT/stages.partial/      finished stages; tracks only of clips that are not finished
OUT/report.*             see report.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldline.data.curate import rules
from worldline.data.curate.cache import StageCache, content_key, from_stored, to_stored
from worldline.data.curate.config import CurateConfig
from worldline.data.curate.endpoint import EndpointFailed
from worldline.data.curate.gates import decide, measure
from worldline.data.curate.language import Judgement, LanguageJudge
from worldline.data.curate.record import SUFFIX, read_record, record_error, write_record
from worldline.data.curate.release import PUBLISHED, Rendering, render, write_clip, write_published
from worldline.data.curate.sheet import contact_sheet, save_sheet
from worldline.data.curate.sources import Damaged, Source, TooShort, fingerprint, read_clip
from worldline.data.curate.tracked import Splatter, Tracked, Tracker
from worldline.io.atomic import atomic_file, remove
from worldline.io.jsonable import jsonable
from worldline.scene import Progress, Video, no_progress

FORMAT = 1
AGAIN = ("unjudged", "untracked", "damaged")
"""Outcomes that another run may change without other settings."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a run works with, passed in.

    Attributes:
        track: the tracker.
        tracker: what decides its result for the clip of a name, JSON-able.
        splat: the renderer.
        judge: a language model, asked before tracking; None: the rules, asked after.
        questions: clips that it is asked about at once.
    """

    track: Tracker
    tracker: Callable[[str], Mapping[str, Any]]
    splat: Splatter
    judge: LanguageJudge | None = None
    questions: int = 4


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Content keys of a clip's stages: what each depends on, hashed."""

    clip: str
    judge: str
    track: str
    measure: str
    whole: str


def run(
    sources: Sequence[Source],
    out: Path,
    tools: Tools,
    config: CurateConfig | None = None,
    progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """Curate videos into a folder; what an earlier run finished is kept, what it began is gone on with.

    Returns:
        What happened to each clip, in the order of the sources.

    Raises:
        EndpointRefused: the language model will answer no question.
        OSError: the disk is full or read-only.
        Whatever `progress` raises, to stop.
    """
    return _Run(out, tools, config or CurateConfig()).all(sources, progress)


class _Run:
    """The state of one run."""

    def __init__(self, out: Path, tools: Tools, config: CurateConfig) -> None:
        self.out, self.tools, self.config = out, tools, config
        self.samples, self.clips, self.sheets = out / "samples", out / "clips", out / "sheets"
        self.cache = StageCache(out)

    def all(self, sources: Sequence[Source], progress: Progress) -> list[dict[str, Any]]:
        # 1. Which clips these are.
        prints: list[str | None] = []
        for done, source in enumerate(sources):
            progress("fingerprints", done, len(sources))
            prints.append(fingerprint(source.path))
        ids = self._ids(sources, prints)
        # 2. Questions to a language model take time elsewhere: several at once, before the rest.
        if self.tools.judge is not None:
            self._ask(sources, prints, ids, progress)
        # 3. One clip after the other.
        found, met = [], dict[str, str]()
        for done, (source, mark) in enumerate(zip(sources, prints, strict=True)):
            progress("clips", done, len(sources))
            if mark is None:
                found.append({"source": source.name, "outcome": "damaged", "why": f"{source.path} cannot be read"})
            elif mark in met:
                found.append({"source": source.name, "outcome": "duplicate", "why": f"the same file as {met[mark]}"})
            else:
                met[mark] = source.name
                found.append(self.clip(source, ids[mark], mark))
        progress("clips", len(sources), len(sources))
        return found

    def _ids(self, sources: Sequence[Source], prints: Sequence[str | None]) -> dict[str, str]:
        """Ids of contents: those of earlier runs, then the next free numbers in the order of the sources."""
        path = self.out / "index.json"
        known: dict[str, str] = json.loads(path.read_text())["ids"] if path.is_file() else {}
        for mark in prints:
            if mark is not None and mark not in known:
                known[mark] = f"{len(known) + 1:06d}"
        with atomic_file(path) as draft:
            draft.write_text(json.dumps({"format": FORMAT, "ids": known}, indent=1))
        return known

    def keys(self, source: Source, mark: str) -> Keys:
        """Content keys; a stage's holds those of the stages it uses."""
        c = self.config
        clip = content_key(FORMAT, mark, c.frames, c.stride, c.video_area)
        judge = content_key(clip, self.tools.judge.identity) if self.tools.judge else ""
        track = content_key(clip, c.size, self.tools.tracker(source.name))
        how = (c.gates.range_m, c.gates.range_relative, c.gates.rescale, c.gates.near_m, c.gates.near_relative)
        return Keys(
            clip=clip,
            judge=judge,
            track=track,
            measure=content_key(track, how),
            whole=content_key(judge, track, asdict(c.gates), asdict(c.rules), c.layout, source.name),
        )

    def _ask(
        self, sources: Sequence[Source], prints: Sequence[str | None], ids: Mapping[str, str], progress: Progress
    ) -> None:
        """Put the judgements of clips that are not finished into the cache."""

        def one(job: tuple[Source, str]) -> None:
            source, mark = job
            keys = self.keys(source, mark)
            if self._finished(ids[mark], keys) is None and self.cache.get("judge", keys.judge) is None:
                try:
                    self._judge(read_clip(source.path, self.config), keys)
                except (Damaged, TooShort, EndpointFailed):
                    pass  # met again, and counted, when it is this clip's turn

        jobs = list({m: (s, m) for s, m in zip(sources, prints, strict=True) if m is not None}.values())
        with ThreadPoolExecutor(self.tools.questions) as pool:
            futures = [pool.submit(one, job) for job in jobs]
            try:
                for done, future in enumerate(futures):
                    progress("questions", done, len(jobs))
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def clip(self, source: Source, name: str, mark: str) -> dict[str, Any]:
        """Everything about one clip; what happened, as in OUT/clips/<id>.json."""
        keys = self.keys(source, mark)
        finished = self._finished(name, keys)
        if finished is not None:
            return finished
        for path in self._files(name):
            remove(path)
        facts: dict[str, Any] = {"id": name, "source": source.name, "sha256": mark, "key": keys.whole}
        try:
            video = read_clip(source.path, self.config)
        except (Damaged, TooShort) as error:
            outcome = "short" if isinstance(error, TooShort) else "damaged"
            return self._close(name, {**facts, "outcome": outcome, "why": str(error)}, keys)
        facts |= {"frames": len(video), "size": list(video.size), "fps": round(video.fps, 4)}
        return self._close(name, {**facts, **self._decide(video, source, name, keys, facts)}, keys)

    def _decide(self, video: Video, source: Source, name: str, keys: Keys, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Judgement, tracks and gates of a clip that could be read; its files if it is kept."""
        judged, tracked = None, None
        if self.tools.judge is not None:
            try:
                judged = self._judge(video, keys)
            except EndpointFailed as error:
                return {"outcome": "unjudged", "why": str(error)}
            if not judged.countable:
                self._sheet(video, name, source, "not countable")
                return {"outcome": "rejected", "gate": "countable", "why": judged.reason, "judgement": judged.to_json()}
        try:
            tracked = self._track(video, source, keys)
        except ValueError as error:
            return {"outcome": "untracked", "why": str(error)}
        judged = judged or rules.judge(tracked, self.config.rules)
        verdicts = decide(self._measure(video, tracked, keys), self.config.gates)
        rendering = render(tracked, self.tools.splat)
        regions = rules.regions(tracked, self.config.rules)
        found: dict[str, Any] = {
            "judgement": judged.to_json(),
            "gates": [asdict(v) for v in verdicts],
            "tracker": tracked.tracks.provenance.system,
            "notes": dict(tracked.notes),
            "regions": [asdict(region) for region in regions],
            "scale": tracked.tracks.scale,
            "moving_share": round(float(tracked.moving.float().mean()), 4),
            "hole_share": round(1 - float(rendering.covered.float().mean()), 4),
        }
        failed = [v for v in verdicts if not v.passed]
        if not judged.countable:
            found |= {"outcome": "rejected", "gate": "countable", "why": judged.reason}
        elif failed:
            found |= {"outcome": "rejected", "gate": failed[0].gate, "why": failed[0].why}
        else:
            found |= {"outcome": "kept", "why": ""}
            found |= self._write(video, name, tracked, rendering, {**facts, **found})
        self._sheet(video, name, source, found["why"] or "kept", tracked, rendering)
        return found

    def _judge(self, video: Video, keys: Keys) -> Judgement:
        stored = self.cache.get("judge", keys.judge)
        if stored is not None:
            return Judgement.from_json(stored[0])
        assert self.tools.judge is not None
        judged = self.tools.judge(video)
        self.cache.put("judge", keys.judge, judged.to_json())
        return judged

    def _track(self, video: Video, source: Source, keys: Keys) -> Tracked:
        stored = self.cache.get("track", keys.track)
        if stored is None:
            tracked = self.tools.track(source.name, video, self.config.size)
            self.cache.put("track", keys.track, *to_stored(tracked))
            stored = self.cache.get("track", keys.track)  # the same numbers whether this run tracked or an earlier one
            assert stored is not None
        return from_stored(*stored)

    def _measure(self, video: Video, tracked: Tracked, keys: Keys) -> dict[str, float | None]:
        stored = self.cache.get("measure", keys.measure)
        if stored is not None:
            return stored[0]
        numbers = jsonable(measure(video, tracked, self.tools.splat, self.config.gates))
        self.cache.put("measure", keys.measure, numbers)
        return numbers

    def _write(
        self, video: Video, name: str, tracked: Tracked, rendering: Rendering, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The sample's files; the sizes of all but videos, and what the compact record loses."""
        judged, found = facts["judgement"], dict[str, Any]()
        write_clip(self.samples, name, video, judged["caption"])
        if self.config.layout in ("both", "released"):
            write_published(self.samples, name, tracked, rendering)
        if self.config.layout in ("both", "compact"):
            told = {k: facts[k] for k in ("id", "source", "sha256", "tracker", "notes", "gates", "moving_share")}
            told |= {"caption": judged["caption"], "caption_source": judged["source"], "entities": judged["entities"]}
            path = self.samples / f"{name}{SUFFIX}"
            write_record(path, tracked, rendering.covered, jsonable(told))
            found["record_error"] = record_error(tracked, read_record(path))
        here = [path for path in self._files(name) if path.parent == self.samples]
        # The encoder now and then needs a byte more for the same pictures, so of videos only their names count.
        found["files"] = {path.name: None if path.suffix == ".mp4" else path.stat().st_size for path in here}
        return found

    def _sheet(
        self,
        video: Video,
        name: str,
        source: Source,
        why: str,
        tracked: Tracked | None = None,
        rendering: Rendering | None = None,
    ) -> None:
        sheet = contact_sheet(video, f"{name}  {source.name}: {why}", tracked, rendering)
        save_sheet(self.sheets / f"{name}.png", sheet)

    def _close(self, name: str, facts: dict[str, Any], keys: Keys) -> dict[str, Any]:
        """Write what happened, then forget the tracks."""
        plain = jsonable(facts)
        with atomic_file(self.clips / f"{name}.json") as draft:
            draft.write_text(json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")
        if not self.config.keep_cache and facts["outcome"] not in AGAIN:
            self.cache.drop("track", keys.track)  # the only large one; answers of a model are worth keeping
        return plain

    def _finished(self, name: str, keys: Keys) -> dict[str, Any] | None:
        """What an earlier run found out, if it is still true and its files are whole."""
        path = self.clips / f"{name}.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if facts.get("key") != keys.whole or facts.get("outcome") in AGAIN:
            return None
        for file, size in facts.get("files", {}).items():
            if not (self.samples / file).is_file() or size not in (None, (self.samples / file).stat().st_size):
                return None
        return facts

    def _files(self, name: str) -> list[Path]:
        """Files there are of a clip, but for its facts."""
        sample = [self.samples / f"{name}{ending}" for ending in (*PUBLISHED, SUFFIX)]
        return [path for path in [*sample, self.sheets / f"{name}.png"] if path.is_file()]
