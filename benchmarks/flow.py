"""The learned flow beside DIS: held-back synthetic pairs, real pairs with truth, and pairs per second.

python benchmarks/flow.py [--weights mini.safetensors] [--data ../shared/data] [--json] [--write]

Synthetic: scene seeds from VALIDATION_START (training stays below 1,000,000,000), gaps of 1, 2 and 4 frames, 96 x 128.
Real: DeepDeform's annotated flow; TartanAir and HoloLens flow derived from depth and poses, where the second depth map
agrees that the point is seen; all at half size. "epe" is the mean distance in pixels, "bad" the share of pixels off by
more than 3 pixels and 5 % of the flow; the learned flow's pixels are also sorted by expected error into five equal
shares: what it said beside what was found. Seconds are CPU seconds of one thread at 192 x 320, each direction counted.
--write puts the numbers into the JSON beside the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldline.data.adapters import deepdeform, hololens, tartanair
from worldline.flow import learned
from worldline.flow.dis import DisFlow, sized
from worldline.geometry import camera, pointmap, pose, sceneflow
from worldline.scene import Scene4D
from worldline.systems.optical_flow.pairs import make_pairs

VALIDATION_START, SCENES, GAPS = 1_000_700_000, 48, (1, 2, 4)
SPEED_SIZE, SPEED_PAIRS = (192, 320), 8
AGREE = 0.03  # relative depth by which two views of a point may differ

Pair = tuple[np.ndarray, np.ndarray, Tensor, Tensor, Tensor]
"""Two pictures [H, W, 3] uint8, flow [H, W, 2], known [H, W], moving [H, W]."""
Method = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray | None]]
"""Two pictures -> flow and its expected error, if it knows any."""
SHARES = 5


def synthetic(gap: int) -> Iterator[Pair]:
    """Held-back pairs."""
    seeds = range(VALIDATION_START + 1000 * gap, VALIDATION_START + 1000 * gap + SCENES)
    batch = make_pairs(seeds, gap, (96, 128))
    one, two = ((x * 255).round().byte().permute(0, 2, 3, 1).numpy() for x in (batch.source, batch.target))
    for i in range(len(one)):
        yield one[i], two[i], batch.flow[i].permute(1, 2, 0), batch.known[i], batch.moving[i]


def static_scene(scene: Scene4D, gap: int) -> Iterator[Pair]:
    """Pairs of a scene where nothing moves: flow from depth and poses, known where both depth maps agree."""
    assert scene.cameras is not None
    frames = scene.video.rgb()
    for t in range(0, len(frames) - gap, gap):
        k, c2w = scene.cameras.intrinsics[t + gap].float(), scene.cameras.cam2world[t + gap]
        local = pose.inverse(scene.cameras.cam2world[t]) @ c2w  # small numbers before float32
        points = pose.transform(pose.inverse(scene.cameras.cam2world[t]), scene.points[t].double())
        flow = sceneflow.to_optical_flow(points, torch.zeros_like(points), k.double(), local).float()
        there = pointmap.to_camera(points, local)[..., 2].float()
        other = pose.transform(pose.inverse(c2w), scene.points[t + gap].double()).float()
        landed = camera.pixel_grid(scene.video.size) + flow
        seen, inside = pointmap.sample(other, scene.valid[t + gap], landed)
        known = scene.valid[t] & inside & ((seen[..., 2] - there).abs() < AGREE * there) & (there > 0)
        yield half(frames[t], frames[t + gap], flow, known, torch.zeros_like(known))


def deforming(scene: Scene4D) -> Iterator[Pair]:
    """The annotated pair; what the object mask covers moves."""
    flow, known = scene.extras["optical_flow"][0], scene.extras["optical_flow_valid"][0].bool()
    yield half(*scene.video.rgb()[:2], flow.float(), known, known)


def half(one: Tensor, two: Tensor, flow: Tensor, known: Tensor, moving: Tensor) -> Pair:
    """Everything at half size; a pixel's flow is the mean of those that are known under it."""
    pictures = [F.avg_pool2d(x.permute(2, 0, 1)[None].float(), 2)[0].permute(1, 2, 0) for x in (one, two)]
    share = F.avg_pool2d(known[None, None].float(), 2)[0, 0]
    total = F.avg_pool2d((flow * known[..., None]).permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)
    small = total / share.clamp(min=1e-6)[..., None] / 2
    rows, columns = share.shape
    one, two = ((x * 255).round().byte().numpy() for x in pictures)
    return one, two, small, share == 1, moving[: 2 * rows : 2, : 2 * columns : 2]


def score(pairs: list[Pair], method: Method) -> dict[str, Any]:
    """Errors over all known pixels of all pairs."""
    gaps, lengths, moving, said = [], [], [], []
    for one, two, truth, known, moves in pairs:
        found, expected = method(one, two)
        gaps.append((torch.from_numpy(np.ascontiguousarray(found)) - truth).norm(dim=-1)[known])
        lengths.append(truth.norm(dim=-1)[known])
        moving.append(moves[known])
        if expected is not None:
            said.append(torch.from_numpy(expected)[known])
    gap, length, moves = (torch.cat(values) for values in (gaps, lengths, moving))
    bad = (gap > 3) & (gap > 0.05 * length)
    moving_epe = float(gap[moves].mean()) if bool(moves.any()) else None
    row = {"epe": float(gap.mean()), "median": float(gap.median()), "bad": float(bad.float().mean())}
    return row | {"epe_moving": moving_epe} | ({"calibration": calibration(torch.cat(said), gap)} if said else {})


def calibration(said: Tensor, found: Tensor) -> list[dict[str, float]]:
    """Mean and median error of equal shares of the pixels, from the surest to the least sure."""
    parts = zip(*(values[said.argsort()].tensor_split(SHARES) for values in (said, found)), strict=True)
    return [{"said": float(a.mean()), "found": float(b.mean()), "median": float(b.median())} for a, b in parts]


def seconds(method: Method) -> float:
    """CPU seconds per directed pair on a short video, every frame paired with the next, both ways."""
    rng = np.random.default_rng(0)
    video = [rng.integers(0, 255, (*SPEED_SIZE, 3), dtype=np.uint8) for _ in range(SPEED_PAIRS + 1)]
    method(video[0], video[1])
    started = time.process_time()
    for one, two in zip(video[1:], video[2:], strict=False):
        method(one, two), method(two, one)
    return (time.process_time() - started) / (2 * (SPEED_PAIRS - 1))


def dis(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, None]:
    """DIS as the parallax system uses it."""
    return sized(DisFlow())(one, two), None


def zero(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, None]:
    """Nothing moves."""
    return np.zeros((*one.shape[:2], 2), np.float32), None


def cases(data: Path | None) -> dict[str, list[Pair]]:
    """All sets of pairs; the real ones only where the folder is."""
    out = {f"synthetic, {gap} frames apart": list(synthetic(gap)) for gap in GAPS}
    if data is None or not data.exists():
        return out
    out["deepdeform"] = [pair for scene in deepdeform.convert(data / "deepdeform") for pair in deforming(scene)]
    for name, adapter, gaps in (("tartanair", tartanair, (1, 3)), ("hololens", hololens, (1, 2))):
        scene = next(iter(adapter.convert(data / name)))
        for gap in gaps:
            out[f"{name}, {gap} frames apart"] = list(static_scene(scene, gap))
    return out


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and keep the numbers beside the weights if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=learned.EMBEDDED)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    network = learned.load(options.weights)
    methods: dict[str, Method] = {"zero": zero, "dis": dis, "learned": network.with_error}
    table = {name: {m: score(pairs, f) for m, f in methods.items()} for name, pairs in cases(options.data).items()}
    report = {"errors_px": table, "cpu_seconds_per_flow": {name: seconds(methods[name]) for name in ("dis", "learned")}}
    if options.write:
        path = options.weights.with_suffix(".json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": report}, indent=1) + "\n")
    sys.stdout.write(json.dumps(report, indent=1) + "\n" if options.json else as_text(report))
    return 0


def as_text(report: dict) -> str:
    """A markdown table."""
    lines = ["| pairs | method | EPE px | median px | bad % | EPE moving px |", "|---|---|---|---|---|---|"]
    for name, row in report["errors_px"].items():
        for method, v in row.items():
            moving = "" if v["epe_moving"] is None else f"{v['epe_moving']:.3f}"
            cells = f"{v['epe']:.3f} | {v['median']:.3f} | {100 * v['bad']:.1f} | {moving}"
            lines.append(f"| {name} | {method} | {cells} |")
    lines += [
        "",
        "| pairs | expected / found error px, from the surest fifth of the pixels to the least sure |",
        "|---|---|",
    ]
    for name, row in report["errors_px"].items():
        shares = ", ".join(f"{part['said']:.2f} / {part['found']:.2f}" for part in row["learned"]["calibration"])
        lines.append(f"| {name} | {shares} |")
    rates = ", ".join(f"{name} {1 / s:.1f}" for name, s in report["cpu_seconds_per_flow"].items())
    return "\n".join(lines) + f"\n\nFlows per CPU second at {SPEED_SIZE[0]} x {SPEED_SIZE[1]}: {rates}.\n"


if __name__ == "__main__":
    sys.exit(main())
