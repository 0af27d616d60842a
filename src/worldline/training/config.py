"""What a training run is: the numbers that, with the code's revision, decide its result."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

EVALUATION_SEEDS = 1_000_000_000
"""Scene seeds from here on are for validation and benchmarks (`synthetic-v1`): training never draws them."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One stage of training, start to end.

    Attributes:
        name: of the stage; its files are called so.
        steps: optimiser steps in total.
        batch_size: clips per step and process.
        accumulate: batches whose gradients are averaged into one step.
        weights: loss name -> weight in the total; losses not named here are reported only.
        learning_rate: peak rate of AdamW, reached after the warm-up.
        warmup_steps: steps of linear warm-up from zero.
        schedule: "cosine" falls to `final_rate` of the peak at the last step; "constant" stays.
        final_rate: fraction of the peak rate left at the end of the cosine.
        betas, epsilon, weight_decay: of AdamW.
        gradient_clip: largest gradient norm.
        ema_decay: of the moving average of the weights, which is what the stage hands on; None: the weights themselves.
        precision: "bf16" runs the networks under autocast, losses stay float32.
        gradient_checkpointing: recompute activations in the backward pass (for the recipe to switch on in its model).
        seed: of everything random in the stage, the order of scenes included.
        checkpoint_every: steps between checkpoints.
        report_every: steps between lines of the loss curve.
    """

    name: str
    steps: int
    batch_size: int
    weights: Mapping[str, float]
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    final_rate: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    ema_decay: float | None = 0.999
    precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    seed: int = 42
    checkpoint_every: int = 200
    report_every: int = 10
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse runs that cannot work."""
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "report_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name} must be at least 1, got {getattr(self, name)}.")
        if not any(self.weights.values()):
            raise ValueError(f"Stage {self.name!r} has no loss with a weight; name at least one in `weights`.")
        last_seed = (self.seed + 1) * SEEDS_PER_RUN
        if self.seed < 0 or last_seed > EVALUATION_SEEDS:
            raise ValueError(f"TrainConfig.seed must be below {EVALUATION_SEEDS // SEEDS_PER_RUN}, got {self.seed}.")

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * cosine)

    def to_json(self) -> dict:
        """All fields as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))


SEEDS_PER_RUN = 10_000_000
"""Scenes a run with one `seed` may draw: run s owns the scene seeds s * SEEDS_PER_RUN and on."""


def scene_seeds(config: TrainConfig, index: int) -> range:
    """Scene seeds of the index-th batch of a run: a counter, so that the data position is one number.

    Raises:
        ValueError: the run would leave its share of the seeds.
    """
    first = index * config.batch_size
    if first + config.batch_size > SEEDS_PER_RUN:
        raise ValueError(f"Stage {config.name!r} needs over {SEEDS_PER_RUN} scenes; use another seed for the rest.")
    start = config.seed * SEEDS_PER_RUN + first
    return range(start, start + config.batch_size)
