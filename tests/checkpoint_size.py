"""How large the checkpoint of a training becomes on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from worldline.training import checkpoint

MIB = 2**20


def sizes(folder: Path, trained: Mapping[str, Tensor]) -> list[int]:
    """Bytes of each file of a checkpoint of these parameters: themselves, their average and AdamW's state."""
    zeros = {name: torch.zeros(value.shape) for name, value in trained.items()}
    state = {f"parameter/{name}": value for name, value in zeros.items()}
    state |= {f"average/{name}": value for name, value in zeros.items()}
    for name, value in zeros.items():
        moments = {"step": torch.tensor(0.0), "exp_avg": value, "exp_avg_sq": value}
        state |= {f"optimizer/{name}/{key}": moment for key, moment in moments.items()}
    written = checkpoint.save(folder, 1, state, {})
    return [path.stat().st_size for path in written.iterdir()]
