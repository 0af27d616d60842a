"""What the embedded MotionCrafter is worth: 64 held-out synthetic clips, beside predictors that do not look.

python benchmarks/motioncrafter_mini.py [--weights mini.safetensors] [--json] [--write]

--write puts the numbers into the JSON beside the weights, and what does not beat its trivial predictor by two standard
errors under "unreliable", which inference hands on to viewers.

Clips: windows of the length and size the model was trained on, scene seeds from VALIDATION_START (training stays below
1,000,000,000). Every prediction gets one scale and one 3-vector shift per clip (specs/motioncrafter.md 5.2: least
squares over all valid pixels, no rotation) before it is compared in the world of the clip's first camera. Scene flow is
scaled with the points; its error is in percent of the clip's mean distance. The mean point map is the average
normalised point map of 256 training clips: what one can know without looking.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from worldline.data.synthetic import render_batch
from worldline.evaluation.baselines import mean_map, plane, ramp
from worldline.evaluation.points import depth_of_points_errors, point_errors
from worldline.geometry import camera, fit, pointmap
from worldline.systems.motioncrafter import pretrained
from worldline.systems.motioncrafter.infer import InferConfig, observe
from worldline.systems.motioncrafter.representation import to_channels, to_maps
from worldline.systems.motioncrafter.system import MINI_CHECKPOINT

VALIDATION_START, CLIPS = 1_000_500_000, 64
MEAN_CLIPS = 256
SIZE, FRAMES = (48, 64), 4
LEAST_VALID = 0.02
METRICS = ("relp", "inlier_0.25", "abs_rel", "epe_all", "epe_moving")


def clips(start: int, wanted: int):
    """Rendered clips one by one, those that show only sky left out."""
    seed, found = start, 0
    while found < wanted:
        batch = render_batch([seed], frames=FRAMES, size=SIZE)
        seed += 1
        if float(batch.valid.float().mean()) > LEAST_VALID:
            found += 1
            yield batch


def mean_point_map() -> Tensor:
    """Average normalised point map [T, H, W, 3] of training clips, invalid pixels left out."""
    total, count = torch.zeros(FRAMES, *SIZE, 3), torch.zeros(FRAMES, *SIZE, 1)
    for batch in clips(900_000_000, MEAN_CLIPS):
        channels = to_channels(batch.points, batch.valid, batch.cam2world)
        total += torch.where(batch.valid[0, ..., None], to_maps(channels.points)[0], 0)
        count += batch.valid[0, ..., None]
    return total / count.clamp(min=1)


def from_depth(depth: Tensor) -> Tensor:
    """A still camera's point map of one depth map, seen with the focal length all trivial predictors assume."""
    intrinsics = camera.intrinsics_from_focal(0.9 * SIZE[1], SIZE)
    return pointmap.from_depth(depth, intrinsics).expand(FRAMES, *SIZE, 3)


def score(points: Tensor, flow: Tensor, batch) -> dict[str, float]:
    """The five numbers of one clip; flow errors in percent of the clip's mean distance."""
    valid, truth = batch.valid[0], batch.points[0]
    scale, shift = fit.scale_shift3_l2(points[valid], truth[valid])
    aligned = scale * points + shift
    depth, depth_truth = (pointmap.depth_of(maps, batch.cam2world[0]) for maps in (aligned, truth))
    relative = point_errors(aligned, truth, valid)
    unit = (truth[valid] - truth[valid].mean(0)).norm(dim=-1).mean()
    error = 100 * (scale * flow - batch.scene_flow[0]).norm(dim=-1) / unit
    known = batch.flow_valid[0]
    moving = known & batch.dynamic[0]
    return {
        "relp": 100 * relative["rel_p"],
        "inlier_0.25": 100 * relative["delta_p_0.25"],
        "abs_rel": 100 * depth_of_points_errors(depth, depth_truth, valid)["depth_abs_rel"],
        "epe_all": float(error[known].mean()),
        "epe_moving": float(error[moving].mean()) if bool(moving.any()) else float("nan"),
    }


def evaluate(weights: Path) -> dict[str, dict[str, Tensor]]:
    """Scores [clips] by predictor and metric."""
    model = pretrained.load_file(weights).model
    mean = mean_point_map()
    still = torch.zeros(FRAMES, *SIZE, 3)
    trivial = {
        "mean point map": mean,
        "mean depth map": from_depth(mean_map(SIZE)),
        "plane": from_depth(plane(SIZE)),
        "ramp": from_depth(ramp(SIZE)),
    }
    scores: dict[str, list[dict[str, float]]] = {}
    previous = None
    for batch in clips(VALIDATION_START, CLIPS):
        for name, points in trivial.items():
            scores.setdefault(name, []).append(score(points, still, batch))
        seen = observe(model, batch.rgb[0], InferConfig())
        assert seen.scene_flow is not None
        scores.setdefault("motioncrafter-mini", []).append(score(seen.points, seen.scene_flow, batch))
        if previous is not None:  # the right answer to another video: what only the layout prior gives
            scores.setdefault("mini, wrong video", []).append(score(previous, still, batch))
        previous = seen.points
    first = next(clips(VALIDATION_START, 1))
    scores["mini, wrong video"].insert(0, score(previous, still, first))
    return {name: {m: torch.tensor([row[m] for row in rows]) for m in METRICS} for name, rows in scores.items()}


def summary(scores: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean, standard error, and paired difference to the mean point map with its standard error."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, rows in scores.items():
        for metric, values in rows.items():
            difference = values - scores["mean point map"][metric]
            cell = {}
            for key, numbers in (("mean", values), ("versus_mean_map", difference)):
                numbers = numbers[~numbers.isnan()].double()
                cell[key] = round(float(numbers.mean()), 3)
                cell[f"{key}_se"] = round(float(numbers.std() / len(numbers) ** 0.5), 3)
            table.setdefault(name, {})[metric] = cell
    return table


def unreliable(table: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Outputs that are not better than the trivial predictor by two standard errors, on every metric of theirs."""

    def better(metric: str) -> bool:
        cell = table["motioncrafter-mini"][metric]
        sign = -1 if metric == "inlier_0.25" else 1
        return sign * cell["versus_mean_map"] < -2 * cell["versus_mean_map_se"]

    outputs = {"points": ("relp", "inlier_0.25", "abs_rel"), "scene_flow": ("epe_all", "epe_moving")}
    return [name for name, metrics in outputs.items() if not all(better(metric) for metric in metrics)]


def write(weights: Path, answer: dict) -> None:
    """Put the numbers into the JSON that describes the weights."""
    path = weights.with_suffix(".json")
    card = json.loads(path.read_text())
    card |= {"metrics": answer, "unreliable": unreliable(answer["metrics"])}
    path.write_text(json.dumps(card, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=MINI_CHECKPOINT)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    table = summary(evaluate(options.weights))
    answer = {"clips": CLIPS, "seeds_from": VALIDATION_START, "size": SIZE, "frames": FRAMES, "metrics": table}
    if options.write:
        write(options.weights, answer)
    if options.json:
        print(json.dumps(answer | {"unreliable": unreliable(table)}, indent=1))
        return 0
    print(f"| {CLIPS} clips, {FRAMES} x {SIZE[0]}x{SIZE[1]} | Relp % | inliers % | AbsRel % | EPE all % | moving % |")
    print("|---|---|---|---|---|---|")
    for name, row in table.items():
        cells = " | ".join(f"{row[m]['mean']:.2f} ± {row[m]['mean_se']:.2f}" for m in METRICS)
        print(f"| {name} | {cells} |")
    ours = table["motioncrafter-mini"]
    gain = ", ".join(f"{m} {ours[m]['versus_mean_map']:+.2f} ± {ours[m]['versus_mean_map_se']:.2f}" for m in METRICS)
    print(f"\nmotioncrafter-mini minus mean point map, paired: {gain}")
    print(f"not better than trivial: {', '.join(unreliable(table)) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
