"""How fast the clip loader is: clips/s against memory that needs no decoding, and how long training waits for it.

    python benchmarks/loader.py [--out FOLDER] [--steps 40] [--real ROOT_OF_TARTANAIR] [--workers 0]

Clips/s are per CPU second of one thread. "decoded in memory" feeds the same clips from decoded arrays through the same
cropping, resizing, composing of flow and change of world: the difference is reading, checksums and decompression.
"finished in memory" only stacks clips that are ready.

The waiting is that of `worldline train motioncrafter-mini` (its U-Net stage: 8 clips of 4 frames, 48x64) as the loop
itself measures it: seconds in which a step stood still for want of its batch. That depends on what else runs; so the
loader's CPU seconds per batch and the training's per step are given too, whose ratio does not.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldline.data import conversion, synthesis
from worldline.data.build import build
from worldline.data.loader import ClipBatch, Loader, LoaderConfig, View, window_of
from worldline.data.mixture import Mixture, Source
from worldline.data.store import ClipStore, StoredClip


class Decoded:
    """A stored clip whose arrays are all decoded in memory."""

    def __init__(self, stored: StoredClip) -> None:
        self.entry = stored.entry
        self._frames = stored.arrays(stored.entry.arrays, list(range(len(stored))))
        self._whole = {name: stored.whole(name) for name in ("intrinsics", "cam2world", "timestamps")}

    def arrays(self, names: Any, frames: list[int]) -> dict[str, np.ndarray]:
        """As `StoredClip.arrays`, without copies."""
        return {name: self._frames[name][frames[0] : frames[-1] + 1 : _step(frames)] for name in names
                if name in self._frames}  # fmt: skip

    def whole(self, name: str) -> np.ndarray:
        """As `StoredClip.whole`."""
        return self._whole[name]


def _step(frames: list[int]) -> int:
    return frames[1] - frames[0] if len(frames) > 1 else 1


def rate(make: Callable[[int], Any], clips_each: int, batches: int) -> float:
    """Clips per CPU second of this thread, after one batch to warm up."""
    make(0)
    start = time.thread_time()
    for index in range(1, batches + 1):
        make(index)
    return batches * clips_each / (time.thread_time() - start)


def clip_rates(place: str, view: View, batch_size: int, batches: int) -> dict[str, float]:
    loader = Loader(Mixture(sources=(Source(store=place),)), LoaderConfig(views=(view,), batch_size=batch_size, seed=1))
    store = ClipStore(place)
    decoded: dict[str, Decoded] = {}

    def from_memory(index: int) -> list[dict[str, torch.Tensor]]:
        made = []
        for drawn in loader.draw(index):
            name = drawn.entry.name
            if name not in decoded:
                decoded[name] = Decoded(store[name])
            made.append(window_of(decoded[name], drawn.start, view))  # type: ignore[arg-type]
        return [{key: torch.stack([part[key] for part in made]) for key in made[0]}]

    for index in range(batches + 1):
        from_memory(index)  # decode outside of what is measured
    finished = [loader(i) for i in range(4)]

    def ready(index: int) -> ClipBatch:
        batch = finished[index % 4]
        kept = [torch.stack(list(value)) for value in (batch.rgb, batch.points, batch.valid, batch.scene_flow)]
        return replace(batch, rgb=kept[0])

    return {
        "store": rate(loader, batch_size, batches),
        "decoded": rate(from_memory, batch_size, batches),
        "ready": rate(ready, batch_size, batches),
    }


def waiting(place: str, folder: Path, steps: int, workers: int) -> dict[str, float]:
    """Seconds and CPU seconds of a few steps of the U-Net stage, and of making their batches."""
    from worldline.systems.motioncrafter import recipes, train
    from worldline.training import stages

    recipe = recipes.mini()
    stage = recipe.stages[-1]
    shorter = replace(stage, train=replace(stage.train, steps=steps, warmup_steps=1, report_every=1))
    recipe = replace(recipe, stages=(shorter,))
    source = train.stored(Mixture(sources=(Source(store=place),)), workers)
    spent: list[float] = []

    def timed(stage: Any, model: Any, device: str) -> Callable[[int], Any]:
        batches = source(stage, model, device)

        def batch(index: int) -> Any:
            start = time.thread_time()
            made = batches(index)
            spent.append(time.thread_time() - start)
            return made

        return batch

    start = time.process_time()
    stages.run(train.METHOD, recipe, folder, source=timed)
    lines = [json.loads(line) for line in (folder / f"{stage.train.name}.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "step" in line]
    first, last = lines[steps // 4], lines[-1]
    seconds = last["seconds"] - first["seconds"]
    data = float(np.median(spent))
    return {
        "data_cpu_seconds": data,
        "step_cpu_seconds": (time.process_time() - start) / len(spent) - data,
        "step_seconds": seconds / (last["step"] - first["step"]),
        "waited_share": (last["waited_seconds"] - first["waited_seconds"]) / seconds,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the stores here; by default they are made and deleted")
    parser.add_argument("--real", type=Path, help="root of a TartanAir folder to convert and read, too")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.out or Path(temporary)
        rows = [("synthetic 96x128 -> 48x64, 4 frames", _synthetic(root), View(frames=4, size=(48, 64)))]
        rows.append(("the same, stride 2 (flow composed)", rows[0][1], View(frames=4, size=(48, 64), stride=2)))
        if arguments.real is not None:
            real = _real(root, arguments.real)
            rows.append(("TartanAir 480x640 -> 48x64, 4 frames", real, View(frames=4, size=(48, 64))))
            rows.append(("TartanAir 480x640 -> 320x424, 8 frames", real, View(frames=8, size=(320, 424))))
        print("| clips | clips/s from the store | decoded in memory | finished in memory |\n|---|---|---|---|")
        for name, place, view in rows:
            found = clip_rates(place, view, 8, arguments.batches if view.size[0] < 100 else 2)
            print(f"| {name} | {found['store']:.0f} | {found['decoded']:.0f} | {found['ready']:.0f} |", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            print(waiting(rows[0][1], Path(folder), arguments.steps, arguments.workers))


def _synthetic(root: Path) -> str:
    place = root / "synthetic"
    if not (place / "index.json").exists():
        config = synthesis.SynthesisConfig(clips=32, seed=70_000_000, frames=12, size=(96, 128))
        build(place, synthesis.jobs(config), {"benchmark": "loader"})
    return str(place)


def _real(root: Path, folder: Path) -> str:
    place = root / "tartanair"
    if not (place / "index.json").exists():
        build(place, conversion.jobs("tartanair", folder), {"benchmark": "loader"})
    return str(place)


if __name__ == "__main__":
    main()
