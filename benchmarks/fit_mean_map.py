"""Make the mean depth map of the trivial predictor: mean log depth of synthetic training clips, over their median.

python benchmarks/fit_mean_map.py  (writes src/worldline/evaluation/mean_map.json; seeds far below the evaluation's)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from worldline.data.synthetic import render_batch

SIZE, CLIPS = (12, 18), 400
TARGET = Path(__file__).resolve().parents[1] / "src" / "worldline" / "evaluation" / "mean_map.json"


def main() -> None:
    total, count = torch.zeros(SIZE), torch.zeros(SIZE)
    for seed in range(CLIPS):
        batch = render_batch([seed], frames=2, size=SIZE)
        valid, depth = batch.valid[0], batch.depth[0]
        if not bool(valid.any()):
            continue
        logs = torch.where(valid, (depth / depth[valid].median()).clamp(min=1e-6).log(), 0.0)
        total, count = total + logs.sum(0), count + valid.sum(0)
    mean = total / count.clamp(min=1)
    note = f"mean log depth over the clip's median, {CLIPS} synthetic clips, seeds 0 to {CLIPS - 1}, rows from the top"
    rounded = [[round(value, 4) for value in row] for row in mean.tolist()]
    TARGET.write_text(json.dumps({"what": note, "log_depth": rounded}) + "\n")


if __name__ == "__main__":
    main()
