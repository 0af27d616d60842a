"""What the embedded MotionCrafter is worth: 64 held-out synthetic clips, beside predictors that do not look.

python benchmarks/motioncrafter_mini.py [--weights mini.safetensors] [--clips 64] [--picture FILE] [--json] [--write]

--write puts the numbers into the JSON beside the weights, and what does not beat its trivial predictor by two standard
errors under "unreliable", which inference hands on to viewers.

Clips: windows of the length the model was trained on, at twice its size so that flow can be estimated as in real use
(the networks see 48x64), scene seeds from VALIDATION_START (training stays below 1,000,000,000). Every prediction gets
one scale and one 3-vector shift per clip (specs/motioncrafter.md 5.2: least squares over all valid pixels, no rotation)
before it is compared in the world of the clip's first camera. Scene flow is scaled with the points; its error is in
percent of the clip's mean distance. The mean point map is the average normalised point map of 256 training clips: what
one can know without looking.
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
from worldline.evaluation.baselines import mean_map, plane, ramp
from worldline.evaluation.points import depth_of_points_errors, point_errors
from worldline.geometry import camera, fit, pointmap
from worldline.systems.motioncrafter import pretrained
from worldline.systems.motioncrafter.infer import observe
from worldline.systems.motioncrafter.representation import to_channels, to_maps
from worldline.systems.motioncrafter.system import MINI_CHECKPOINT, MINI_INFERENCE

VALIDATION_START, CLIPS = 1_000_500_000, 64
MEAN_CLIPS = 256
SIZE, FRAMES = (96, 128), 4
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


def evaluate(weights: Path, count: int) -> dict[str, dict[str, Tensor]]:
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
    for batch in clips(VALIDATION_START, count):
        for name, points in trivial.items():
            scores.setdefault(name, []).append(score(points, still, batch))
        seen = observe(model, batch.rgb[0], MINI_INFERENCE)
        assert seen.scene_flow is not None
        scores.setdefault("motioncrafter-mini", []).append(score(seen.points, seen.scene_flow, batch))
        if model.config.optical_flow:
            told = observe(model, batch.rgb[0], replace(MINI_INFERENCE, optical_flow=True))
            assert told.scene_flow is not None
            scores.setdefault("mini, with optical flow", []).append(score(told.points, told.scene_flow, batch))
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


def picture(weights: Path, path: Path, rows: int = 6) -> None:
    """First and last frame of some clips, predicted depth of both after alignment, true depth of both (sky black)."""
    import cv2
    import numpy as np

    def coloured(depth: Tensor, shown: Tensor, ends: tuple[float, float]) -> np.ndarray:
        near, far = (1 / value for value in ends)
        grey = ((1 / depth.clamp(min=1e-3) - far) / (near - far)).clamp(0, 1)
        return cv2.applyColorMap((255 * grey).byte().numpy(), cv2.COLORMAP_TURBO) * shown[..., None].numpy()

    model, lines = pretrained.load_file(weights).model, []
    for batch in clips(VALIDATION_START, rows):
        seen, valid = observe(model, batch.rgb[0], MINI_INFERENCE), batch.valid[0]
        scale, shift = fit.scale_shift3_l2(seen.points[valid], batch.points[0][valid])
        depth = pointmap.depth_of(scale * seen.points + shift, batch.cam2world[0])
        near, far = (float(batch.depth[0][valid].quantile(q)) for q in (0.02, 0.98))
        ends = (0, FRAMES - 1)
        panels = [(255 * batch.rgb[0, t].flip(-1)).byte().numpy() for t in ends]
        panels += [coloured(depth[t], torch.ones_like(valid[t]), (near, far)) for t in ends]
        panels += [coloured(batch.depth[0, t], valid[t], (near, far)) for t in ends]
        lines.append(np.concatenate(panels, axis=1))
    cv2.imwrite(str(path), np.concatenate(lines))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=MINI_CHECKPOINT)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--picture", type=Path, help="draw six clips into this file, measure nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.picture is not None:
        picture(options.weights, options.picture)
        return 0
    table = summary(evaluate(options.weights, options.clips))
    answer = {"clips": options.clips, "seeds_from": VALIDATION_START, "size": SIZE, "frames": FRAMES, "metrics": table}
    if options.write:
        write(options.weights, answer)
    if options.json:
        print(json.dumps(answer | {"unreliable": unreliable(table)}, indent=1))
        return 0
    what = f"{options.clips} clips, {FRAMES} x {SIZE[0]}x{SIZE[1]}"
    print(f"| {what} | Relp % | inliers % | AbsRel % | EPE all % | moving % |")
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
