"""Making a store out of many independent jobs: in parallel, resumable, and honest about what could not be made.

A job makes one clip. What goes wrong in one is recorded with the name of the file and the reason, and the clip is left
out; nothing takes its place. What goes wrong with the store itself (a full disk) stops everything. Every process writes
shards of its own; a killed run loses the clips of unfinished shards and makes them again.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldline.data.clips import Clip, DamagedFile
from worldline.data.store import Entry, ShardWriter, begin, finish
from worldline.data.store.writer import SHARD_BYTES
from worldline.io.storage import Storage
from worldline.scene import Progress, Scene4D, no_progress

STOP_SECONDS = 20.0
"""How long an interrupted run waits for its workers to close their shards."""

REPORT = "report.json"
"""File of a store that lists what was left out."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to be made.

    Attributes:
        name: of the clip, unique.
        make: makes it; picklable. Raises DamagedFile.
    """

    name: str
    make: Callable[[], Scene4D | Clip]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A clip that could not be made.

    Attributes:
        clip: its name.
        file: what is damaged; empty when no single file is.
        reason: one sentence.
    """

    clip: str
    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file or self.clip}: {self.reason} (clip {self.clip} is left out)"


@dataclass(frozen=True, kw_only=True)
class Built:
    """What became of a store.

    Attributes:
        entries: all its clips.
        skipped: what is missing.
        resumed: how many clips an earlier run had made.
    """

    entries: list[Entry]
    skipped: list[Skipped]
    resumed: int


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How a store is made.

    Attributes:
        workers: processes; 1 works in this one.
        shard_bytes: a shard is closed when it is this long; what a kill can lose per worker.
        overwrite: replace a store of other settings.
        retry: reopen a finished store of the same settings, to try again what was left out.
    """

    workers: int = 1
    shard_bytes: int = SHARD_BYTES
    overwrite: bool = False
    retry: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that make nothing."""
        if self.workers < 1:
            raise ValueError(f"A store needs one worker or more, got {self.workers}.")


def build(
    place: str | Path,
    jobs: Iterable[Job],
    settings: Mapping[str, Any],
    config: BuildConfig | None = None,
    progress: Progress = no_progress,
) -> Built:
    """Make a store, or go on with one that the same settings began.

    Args:
        place: folder or URL.
        jobs: what is in it, in any order.
        settings: all that decides what is made, JSON-able.
        config: how.
        progress: told clips done and in all.

    Raises:
        FileExistsError: the place holds something else, see `store.begin`.
        ValueError: two jobs have one name, or not a single clip could be made.
        OSError: the store cannot be written, or a worker died.
    """
    config = config or BuildConfig()
    jobs = list(jobs)
    if len({job.name for job in jobs}) != len(jobs):
        raise ValueError("Two clips would have one name; the adapter that lists them is wrong.")
    storage, done = begin(place, settings, overwrite=config.overwrite, reopen=config.retry)
    if config.workers > 1 and not storage.shared:
        raise ValueError(f"{place} exists in one process only: use one worker, or another place.")
    left = [job for job in jobs if job.name not in done]
    resumed = len(jobs) - len(left)
    skipped: list[Skipped] = []

    def told(found: Skipped | None) -> None:
        told.count += 1  # type: ignore[attr-defined]
        skipped.extend([] if found is None else [found])
        progress("clips", resumed + told.count, len(jobs))  # type: ignore[attr-defined]

    told.count = 0  # type: ignore[attr-defined]
    progress("clips", resumed, len(jobs))
    run = _in_this_process if config.workers == 1 or len(left) < 2 else _in_processes
    run(storage, left, config, told)
    skipped.sort(key=lambda item: item.clip)
    storage.write(REPORT, json.dumps({"skipped": [asdict(item) for item in skipped]}, indent=1).encode())
    if len(skipped) == len(jobs):
        raise ValueError(f"No clip could be made: {skipped[0] if skipped else 'there is nothing to make one of'}.")
    return Built(entries=finish(storage, settings), skipped=skipped, resumed=resumed)


def skipped_of(storage: Storage) -> list[Skipped]:
    """What the last run that made a store left out; nothing if it does not say."""
    try:
        return [Skipped(**entry) for entry in json.loads(storage.read(REPORT))["skipped"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def _do(job: Job, writer: ShardWriter) -> Skipped | None:
    """Make one clip and write it; what is wrong with it is returned, what is wrong with the store is raised."""
    try:
        made = job.make()
        clip = made if isinstance(made, Clip) else Clip(scene=made)
    except DamagedFile as error:
        return Skipped(clip=job.name, file=str(error.path), reason=error.reason)
    except MemoryError:
        raise
    except Exception as error:  # whatever an adapter stumbles over concerns this clip only
        text = " ".join(str(error).split())
        known = isinstance(error, (ValueError, OSError)) and bool(text)
        return Skipped(clip=job.name, file="", reason=text if known else f"{type(error).__name__}: {text}")
    try:
        writer.add(job.name, clip)
    except ValueError as error:
        return Skipped(clip=job.name, file="", reason=" ".join(str(error).split()))
    return None


Told = Callable[[Skipped | None], None]


def _in_this_process(storage: Storage, jobs: list[Job], config: BuildConfig, told: Told) -> None:
    with ShardWriter(storage, config.shard_bytes) as writer:
        for job in jobs:
            told(_do(job, writer))


def _work(storage: Storage, shard_bytes: int, todo: Any, results: Any) -> None:
    """One worker: jobs until there are none, then "finished"; an error of the store is sent and ends it."""
    import torch

    torch.set_num_threads(1)  # the workers are the parallelism
    try:
        with ShardWriter(storage, shard_bytes) as writer:
            while True:
                job = todo.get()
                if job is None:
                    break
                results.put(("clip", _do(job, writer)))
        results.put(("finished", None))
    except KeyboardInterrupt:
        results.put(("finished", None))
    except Exception as error:
        results.put(("failed", error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")))


def _in_processes(storage: Storage, jobs: list[Job], config: BuildConfig, told: Told) -> None:
    context = multiprocessing.get_context("spawn")  # forked torch and forked network clients hang
    count = min(config.workers, len(jobs))
    todo, results = context.Queue(), context.Queue()
    for job in [*jobs, *[None] * count]:
        todo.put(job)
    workers = [
        context.Process(target=_work, args=(storage, config.shard_bytes, todo, results), daemon=True)
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    try:
        _collect(workers, results, told)
    except BaseException:
        _stop(workers, todo)
        raise
    finally:
        todo.cancel_join_thread()
        for worker in workers:
            worker.join()


def _stop(workers: list[Any], todo: Any) -> None:
    """Let every worker end its clip and close its shard; those that take longer than a while are killed."""
    with suppress(queue.Empty):
        while True:
            todo.get_nowait()
    for _ in workers:
        todo.put(None)
    for worker in workers:
        worker.join(timeout=STOP_SECONDS)
        worker.terminate()


def _collect(workers: list[Any], results: Any, told: Told) -> None:
    """Hear of every clip until all workers have finished.

    Raises:
        OSError: a worker failed, or is gone.
    """
    finished = 0
    while finished < len(workers):
        try:
            kind, value = results.get(timeout=1.0)
        except queue.Empty:
            gone = [worker for worker in workers if worker.exitcode not in (None, 0)]
            if gone:
                raise OSError(f"A worker died (exit code {gone[0].exitcode}; -9 means that memory ran out). What is "
                              "finished is kept: run again with fewer workers.") from None  # fmt: skip
            continue
        if kind == "clip":
            told(value)
        elif kind == "failed":
            raise value
        else:
            finished += 1
