"""What a small Geo4D checkpoint is worth, and what each modality adds, on held-out synthetic clips.

python benchmarks/geo4d_mini.py --weights mini.safetensors [--clips 32] [--json] [--write]

Clips: one window of frames at the size the model was trained on, scene seeds from VALIDATION_START (training stays
below 1,000,000,000). Depth: AbsRel in percent after one scale and shift per clip in disparity (least absolute
deviation), the only alignment that is fair to a disparity map. Cameras: absolute trajectory error after a similarity,
in percent of the path's length, over clips whose camera moves. A miniature of the paper's tables 3 (modalities) and 6
(steps); --write puts the numbers into the JSON beside the weights, and what does not beat its trivial predictor by two
standard errors under "unreliable".
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from worldline.data.synthetic import render_batch
from worldline.evaluation import trajectory
from worldline.evaluation.baselines import mean_map
from worldline.geometry import fit, pointmap
from worldline.scene import Video
from worldline.systems.geo4d import pretrained
from worldline.systems.geo4d import representation as rep
from worldline.systems.geo4d.config import MODALITIES
from worldline.systems.geo4d.infer import InferConfig, Observer, infer

VALIDATION_START = 1_000_500_000
SIZE, LEAST_VALID = (48, 64), 0.05
DEFAULT = InferConfig(final="clean", ray_reduction=2)
METRICS = ("abs_rel", "ate")
TOLD = {
    "points": ("points",),
    "points + disparity": ("points", "disparity"),
    "points + rays": ("points", "ray_direction", "ray_moment"),
    "all": MODALITIES,
}


def clips(wanted: int, frames: int):
    """Rendered clips one by one, those that show little but sky left out."""
    seed, found = VALIDATION_START, 0
    while found < wanted:
        batch = render_batch([seed], frames=frames, size=SIZE)
        seed += 1
        if float(batch.valid.float().mean()) > LEAST_VALID:
            found += 1
            yield batch


def abs_rel(disparity: Tensor, batch) -> float:
    """Percent, after one scale and shift in disparity."""
    valid, truth = batch.valid[0], batch.depth[0]
    known = disparity[valid].double()
    scale, shift = fit.scale_shift_l1(known, 1 / truth[valid].double())
    depth = 1 / (scale * known + shift).clamp(min=1 / 100)
    return 100 * float(((depth - truth[valid]).abs() / truth[valid]).mean())


def ate(cam2world: Tensor, batch) -> float:
    """Percent of the path; NaN for a camera that stands still."""
    truth = batch.cam2world[0].double()
    if trajectory.still(truth):
        return float("nan")
    error = trajectory.absolute_trajectory_error(cam2world.double(), truth, "sim3")
    return 100 * error / trajectory.path_length(truth)


def rows_of(model, batch, mean: Tensor) -> dict[str, dict[str, float]]:
    """The scores of every row of the tables on one clip."""
    count = batch.rgb.shape[1]
    video = Video(frames=batch.rgb[0], timestamps=torch.arange(count, dtype=torch.float64) / 24)
    nan = float("nan")
    still = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    walk = still.clone()
    walk[:, 0, 3] = torch.arange(count, dtype=torch.float64)
    rows = {
        "mean depth, straight path": {
            "abs_rel": abs_rel((1 / mean).expand(count, -1, -1), batch),
            "ate": ate(walk, batch),
        }
    }
    seen = Observer(video, model, DEFAULT).observe(range(count))
    rows["disparity alone"] = {"abs_rel": abs_rel(seen.disparity, batch), "ate": nan}
    for method in ("published", "paper"):
        _, cameras = rep.ray_cameras((seen.ray_direction, seen.ray_moment), method)
        rows[f"rays alone, {method}"] = {"abs_rel": nan, "ate": ate(cameras, batch)}
    exact = Observer(video, model, replace(DEFAULT, ray_reduction=1)).observe(range(count))
    _, cameras = rep.ray_cameras((exact.ray_direction, exact.ray_moment), "published")
    rows["rays alone, published, decoded in full"] = {"abs_rel": nan, "ate": ate(cameras, batch)}
    for name, told in TOLD.items():
        rows[name] = scored(infer(video, model, replace(DEFAULT, modalities=told)), batch)
    for steps, final in ((5, "clean"), (5, "published"), (5, "unscaled")):
        rows[f"all, {steps} steps, {final}"] = scored(
            infer(video, model, replace(DEFAULT, steps=steps, final=final)), batch
        )
    return rows


def scored(scene, batch) -> dict[str, float]:
    """Depth and cameras of a scene; pixels that the scene does not know count as the most distant one it does."""
    depth = pointmap.depth_of(scene.points, scene.cameras.cam2world).clamp(min=1e-4)
    known = scene.valid & torch.isfinite(depth)
    depth = torch.where(known, depth, depth[known].max() if bool(known.any()) else 1.0)
    return {"abs_rel": abs_rel(1 / depth, batch), "ate": ate(scene.cameras.cam2world, batch)}


def summary(scores: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard error of every row; paired differences to "all"."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in scores[0]:
        for metric in METRICS:
            values = torch.tensor([clip[name][metric] for clip in scores], dtype=torch.float64)
            ours = torch.tensor([clip["all"][metric] for clip in scores], dtype=torch.float64)
            cell = {}
            for key, numbers in (("mean", values), ("versus_all", values - ours)):
                numbers = numbers[~numbers.isnan()]
                if len(numbers) > 1:
                    cell[key] = round(float(numbers.mean()), 3)
                    cell[f"{key}_se"] = round(float(numbers.std() / len(numbers) ** 0.5), 3)
            table.setdefault(name, {})[metric] = cell
    return table


def unreliable(table: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Outputs that do not beat looking at nothing by two standard errors."""
    cells = table["mean depth, straight path"]
    outputs = {"points": "abs_rel", "cameras": "ate"}
    return [o for o, m in outputs.items() if not cells[m]["versus_all"] > 2 * cells[m]["versus_all_se"]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = pretrained.load_file(options.weights).model
    mean = mean_map(SIZE)
    table = summary([rows_of(model, batch, mean) for batch in clips(options.clips, model.config.window)])
    answer = {"clips": options.clips, "seeds_from": VALIDATION_START, "size": SIZE, "frames": model.config.window}
    answer |= {"metrics": table}
    if options.write:
        path = options.weights.with_suffix(".json")
        card = json.loads(path.read_text()) | {"metrics": answer, "unreliable": unreliable(table)}
        path.write_text(json.dumps(card, indent=1) + "\n")
    if options.json:
        print(json.dumps(answer | {"unreliable": unreliable(table)}, indent=1))
        return 0
    print(
        f"| {options.clips} clips, {model.config.window} x {SIZE[0]}x{SIZE[1]} "
        "| AbsRel % | minus all | ATE % of path | minus all |"
    )
    print("|---|---|---|---|---|")
    for name, row in table.items():
        cells = []
        for metric in METRICS:
            for key, sign in (("mean", ""), ("versus_all", "+")):
                cell = row[metric]
                cells.append(f"{cell[key]:{sign}.2f} ± {cell[f'{key}_se']:.2f}" if key in cell else "")
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\nnot better than looking at nothing: {', '.join(unreliable(table)) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
