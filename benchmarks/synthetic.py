"""Speed of the synthetic ray-caster in frames per CPU second, eager and compiled, scenes sampled on the way.

python benchmarks/synthetic.py [--clips 24] [--frames 8] [--size 64x96] [--eager-only]
The prototype it must not fall behind made 340 (compiled) and 27 (eager) frames/s on two cores at 64x96, that is 170 and
13.5 per CPU second. CPU time does not depend on what else runs here, but for shared caches.
"""

from __future__ import annotations

import argparse
import time

import torch

from worldline.data.synthetic import RenderConfig, render_batch


def frames_per_cpu_second(
    config: RenderConfig, clips: int, frames: int, size: tuple[int, int]
) -> tuple[float, float, float]:
    """Frames per CPU second and per wall second of warm rendering, and CPU seconds of the warm-up."""
    start = time.process_time()
    for _ in range(2):  # the first pass compiles; seeds that show every background and primitive
        render_batch(range(20), frames=frames, size=size, config=config)
    warm_up = time.process_time() - start
    start, wall = time.process_time(), time.perf_counter()
    for first in range(1000, 1000 + clips, 8):
        render_batch(range(first, min(first + 8, 1000 + clips)), frames=frames, size=size, config=config)
    count = clips * frames
    return count / (time.process_time() - start), count / (time.perf_counter() - wall), warm_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", default="64x96")
    parser.add_argument("--eager-only", action="store_true")
    arguments = parser.parse_args()
    height, width = (int(value) for value in arguments.size.split("x"))
    torch.set_num_threads(1)
    modes = {"eager": RenderConfig(), "eager, no shadows": RenderConfig(shadows=False)}
    if not arguments.eager_only:
        modes["compiled"] = RenderConfig(compile=True)
        modes["compiled, no shadows"] = RenderConfig(compile=True, shadows=False)
    print(f"{arguments.clips} clips of {arguments.frames} frames at {height}x{width}, one thread")
    for name, config in modes.items():
        cpu, wall, warm_up = frames_per_cpu_second(config, arguments.clips, arguments.frames, (height, width))
        print(
            f"{name:<22}{cpu:7.0f} frames per CPU second ({1e3 / cpu:.2f} ms of CPU per frame), "
            f"{wall:.0f} frames/s as run, warm-up {warm_up:.0f} CPU seconds"
        )


if __name__ == "__main__":
    main()
