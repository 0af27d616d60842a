"""Frames per second of the embedded video systems at 128x192, CPU and wall time, windows joined: `--frames 48`.

The target of issue 10 is 10 frames a second on two cores. CPU seconds count, as wall time also counts neighbours.
"""

from __future__ import annotations

import argparse
import sys
import time

from worldline import api
from worldline.data.synthetic import render_clip

SIZE, SEED = (128, 192), 731_000_007
SYSTEMS = ("motioncrafter-mini", "geo4d-mini")


def main(argv: list[str] | None = None) -> int:
    """Reconstruct one rendered clip with each system, after a short one to warm up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=48)
    options = parser.parse_args(argv)
    video = render_clip(SEED, frames=options.frames, size=SIZE, category="occlusion").video
    for name in SYSTEMS:
        api.reconstruct(video.select(slice(8)), system=name, size=SIZE)
        cpu, wall = time.process_time(), time.perf_counter()
        api.reconstruct(video, system=name, size=SIZE)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(
            f"{name}: {options.frames / cpu:.1f} frames per CPU second, {options.frames / wall:.1f} per second of wall"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
