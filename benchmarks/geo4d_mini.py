"""What a small Geo4D checkpoint is worth on held-out synthetic clips: the numbers of its model card.

python benchmarks/geo4d_mini.py --weights mini.safetensors [--clips 64] [--average CHECKPOINT] [--json] [--write]
python benchmarks/geo4d_mini.py --weights mini.safetensors --picture mini.png        # six clips, measures nothing

Clips: one window of frames at twice the size the model was trained on, so that flow can be estimated as in real use
(the networks see 48x64); scene seeds that training never draws. Scores and alignment are those of
`evaluation.ablation`: depth after one scale and shift per clip in disparity, cameras after a similarity. One row
leaves optical flow out; the last shows the model another video, which tells what it sees from what it expects of any
scene.
--write puts the numbers into the JSON beside the weights, and under "unreliable" what does not beat its trivial
predictor by two standard errors, clip by clip. --average puts the averaged weights of a checkpoint in place of those
of the file: what the training was worth at that step.

What stride, steps and decoder add: `worldline bench geo4d-ablation`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from worldline.evaluation import ablation as judging
from worldline.evaluation import ablation_tables as tables
from worldline.geometry import fit
from worldline.systems.geo4d import ablation
from worldline.systems.geo4d.system import Geo4DSystem, load_mini
from worldline.systems.system import Loading
from worldline.training import checkpoint
from worldline.training.stages import load_weights

SIZE = (96, 128)
TABLE, WRONG = ablation.MODALITY_TABLE, "shown another video"
OUTPUTS = {"points": (ablation.ALL, "abs_rel"), "cameras": (ablation.ALL, "ate"), "disparity": ("disparity", "abs_rel")}
"""What a scene of this system holds, and the row and metric that judge it."""


def scores_of(system: Geo4DSystem, clips: int) -> Iterator[list[judging.Score]]:
    """The scores of every row, clip by clip; the other video is that of the clip before."""
    frames = system.model.config.window
    others = judging.held_out_clips(1, frames, SIZE, start=judging.VALIDATION_START - 1000)
    before = next(others)
    for truth in judging.held_out_clips(clips, frames, SIZE):
        rows = list(modality_rows(system, truth))
        wrong = next(row for row in modality_rows(system, before) if row.name == ablation.ALL)
        asked = [*rows, *without_flow(system, truth), replace(wrong, name=WRONG)]
        yield judging.trivial_scores(truth, {TABLE: frames}) + [judging.judge(row, truth) for row in asked]
        before = truth


def modality_rows(system: Geo4DSystem, truth: judging.Truth) -> Iterator[ablation.Row]:
    """The rows of the modalities; their answers are made when asked for."""
    rows = ablation.rows(truth.video, system.model, system.config)
    return (row for row in rows if row.table == TABLE)


def without_flow(system: Geo4DSystem, truth: judging.Truth) -> list[ablation.Row]:
    """What a model that reads optical flow says without it."""
    if not system.model.config.optical_flow:
        return []
    blind = replace(system, config=replace(system.config, optical_flow=not system.config.optical_flow))
    row = next(row for row in modality_rows(blind, truth) if row.name == ablation.ALL)
    return [replace(row, name="shown no optical flow" if system.config.optical_flow else "shown optical flow")]


def trivial_minus(scores: Sequence[judging.Score]) -> dict[str, dict[str, object]]:
    """By how much each output is better than looking at nothing, with the standard error, clip by clip."""
    found = {}
    for output, (row, metric) in OUTPUTS.items():
        gain, error, clips = tables.difference(scores, TABLE, metric, judging.TRIVIAL, row)
        found[output] = {"row": row, "metric": metric, "gain": gain, "error": error, "clips": clips}
    return found


def with_average(system: Geo4DSystem, folder: Path) -> Geo4DSystem:
    """The system with the averaged weights of a checkpoint `STAGE-checkpoint/step-N` in place of its own."""
    tensors, _ = checkpoint.load(folder)
    known = set(system.model.state_dict())
    found = {name.removeprefix("average/"): value for name, value in tensors.items() if name.startswith("average/")}
    load_weights(system.model, {name: value for name, value in found.items() if name in known})
    return system


def picture(system: Geo4DSystem, path: Path, clips: int = 6) -> None:
    """First and last frame of some clips, depth said about both after scale and shift, true depth (sky black)."""
    import cv2

    lines = []
    for truth in judging.held_out_clips(clips, system.model.config.window, SIZE):
        said = next(row for row in modality_rows(system, truth) if row.name == ablation.ALL).answer().disparity
        assert said is not None
        true, shown = 1 / truth.depth, truth.valid
        scale, shift = fit.scale_shift_l1(said[shown].double(), true[shown].double())
        far, near = (float(true[shown].quantile(q)) for q in (0.02, 0.98))
        everywhere, row = torch.ones_like(shown), []
        for maps, mask in ((scale * said + shift, everywhere), (true, shown)):
            for t in (0, -1):
                grey = (255 * ((maps[t] - far) / (near - far)).clamp(0, 1)).byte().numpy()
                row.append(cv2.applyColorMap(grey, cv2.COLORMAP_TURBO) * mask[t, ..., None].numpy())
        rgb = truth.video.rgb()[[0, -1]].flip(-1)
        lines.append(np.concatenate([*(255 * rgb).byte().numpy(), *row], axis=1))
    cv2.imwrite(str(path), np.concatenate(lines))


def main(argv: list[str] | None = None) -> int:
    """Score, show, and write into the card if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--average", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--picture", type=Path, help="draw six clips into this file, measure nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)
    if options.write and options.average:
        parser.error("--write describes the weights of the file; leave --average out.")
    torch.set_num_threads(1)
    system = load_mini(Loading(device=torch.device("cpu"), weights=str(options.weights)))
    if options.average:
        system = with_average(system, options.average)
    if options.picture is not None:
        picture(system, options.picture)
        return 0
    scores = [score for clip in scores_of(system, options.clips) for score in clip]
    lines = tables.lines(scores, lambda table: ablation.ALL)
    gains = trivial_minus(scores)
    bad = [output for output, cell in gains.items() if not cell["gain"] > 2 * cell["error"]]
    answer = {
        "command": f"python benchmarks/geo4d_mini.py --clips {options.clips}",
        "clips": options.clips,
        "seeds_from": judging.VALIDATION_START,
        "size": SIZE,
        "frames": system.model.config.window,
        "trivial_minus": gains,
        "rows": tables.rows(lines),
    }
    if options.write:
        path = options.weights.with_suffix(".json")
        card = json.loads(path.read_text()) | {"metrics": answer, "unreliable": bad}
        path.write_text(json.dumps(card, indent=1) + "\n")
    if options.json:
        print(json.dumps(answer | {"unreliable": bad}, indent=1))
        return 0
    print(tables.table_text(lines, lambda table: ablation.ALL))
    print(f"\nnot better than looking at nothing: {', '.join(bad) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
