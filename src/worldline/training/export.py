"""Writes what inference needs of a trained model: one fp16 safetensors file, and a JSON of how it came about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from worldline.io.atomic import atomic_file
from worldline.training.curve import git_revision


def export(
    weights: Mapping[str, Tensor],
    path: Path,
    config: Mapping[str, Any],
    card: Mapping[str, Any],
    *,
    exact: tuple[str, ...] = (),
) -> Path:
    """Write weights as float16 (those named in `exact` as they are), and beside them a JSON with the same name.

    The JSON holds `config` (the networks), `sha256` of the weights, `git_revision`, and everything in `card` (metrics,
    unreliable outputs, recipe, seed, command). Returns the path of the weights.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {
        name: (value if name in exact else value.half()).detach().cpu().contiguous() for name, value in weights.items()
    }
    with atomic_file(path) as draft:
        save_file(halves, draft)
        digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    about = {"config": dict(config), "sha256": digest, "git_revision": git_revision(), **card}
    with atomic_file(path.with_suffix(".json")) as draft:
        draft.write_text(json.dumps(about, indent=1) + "\n")
    return path
