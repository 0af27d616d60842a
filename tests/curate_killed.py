"""A curation run that kills itself: `python curate_killed.py VIDEOS OUT WHERE NUMBER`, or never for WHERE "nowhere"."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from curate_case import CONFIG, tracked
from worldline.data.curate import pipeline, report, sources
from worldline.render.splat import splat

where, number = sys.argv[3], int(sys.argv[4])
count = {"track": 0, "measure": 0, "render": 0, "write": 0}


def step(name: str) -> None:
    count[name] += 1
    if name == where and count[name] == number:
        os.kill(os.getpid(), signal.SIGKILL)


def tracker(name: str, video: Any, size: tuple[int, int]) -> Any:
    step("track")
    return tracked(video, size)


def splatter(*args: Any, **kwargs: Any) -> Any:
    step("measure" if "near" in kwargs else "render")
    return splat(*args, **kwargs)


written = pipeline.write_published


def write(*args: Any) -> None:
    step("write")
    written(*args)


torch.set_num_threads(1)
pipeline.write_published = write
videos, out = sources.find([Path(sys.argv[1])]), Path(sys.argv[2])
tools = pipeline.Tools(track=tracker, tracker=lambda name: {"exact": 1}, splat=splatter)
clips = pipeline.run(videos, out, tools, CONFIG)
report.write_report(out, report.summary(clips, CONFIG, {}))
sys.stdout.write(f"tracked {count['track']}")
