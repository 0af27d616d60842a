"""Two processes train as one does with twice the batches: gradients are shared, ranks do not drift."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from more4d_tiny import TINY, motion
from worldline.systems.more4d import recipes
from worldline.systems.more4d.networks import build
from worldline.training.loop import train

folder, accumulate = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
model = build(TINY)
stage = recipes.mini(networks=TINY).stages[int(sys.argv[3])]
settings = {"steps": 2, "batch_size": 2, "precision": "no", "ema_decay": None, "warmup_steps": 0}
stage = replace(stage, train=replace(stage.train, accumulate=accumulate, **settings))
chosen = stage.begin(model)
train(model, stage.objective, lambda index: motion(seed=index), stage.train, folder)
name = f"rank{os.environ.get('RANK', 'one')}.safetensors"
save_file({k: v.detach().contiguous() for k, v in model.named_parameters() if k in chosen}, folder / name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, -1], ids=["vae", "generator"])
def test_blocking_11_two_ranks_agree_with_one(stage: int, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).resolve().parents[1] / "src")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    alone = [sys.executable, str(script), str(tmp_path), "2", str(stage)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    together = [*launcher, str(script), str(tmp_path / "two"), "1", str(stage)]
    (tmp_path / "two").mkdir()
    for command in (alone, together):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    one = load_file(tmp_path / "rankone.safetensors")
    ranks = [load_file(tmp_path / "two" / f"rank{rank}.safetensors") for rank in range(2)]
    for key, value in one.items():
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        # Adam divides by tiny second moments, so that rounding may show in single numbers
        close = torch.isclose(ranks[0][key], value, atol=1e-4, rtol=1e-3)
        assert float(close.float().mean()) > 0.99, key
