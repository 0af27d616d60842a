"""Training run of the flow network that ships in the package: one stage."""

from __future__ import annotations

from dataclasses import dataclass

from worldline.flow.network import NetworkConfig
from worldline.systems.optical_flow.objective import FlowObjective
from worldline.training import stages
from worldline.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """What training pairs look like; batches take sizes, gaps and hints in turn.

    Attributes:
        sizes: (H, W) in pixels, multiples of 8.
        gaps: frames between the pictures of a pair.
        doubled: every so many-th batch has hints from doubled pictures, with half their noise; the others' are as
            large pictures have them.
        block: batches that are shown once before they are shown again, mirrored.
        turns: how often a batch is shown, each time mirrored otherwise: rendering costs as much as a step.
    """

    sizes: tuple[tuple[int, int], ...] = ((96, 128), (128, 96), (96, 160))
    gaps: tuple[int, ...] = (1, 2, 4, 1, 3)
    doubled: int = 2
    block: int = 16
    turns: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be shown."""
        if not 1 <= self.turns <= 4 or self.block < 1 or self.doubled < 1:
            raise ValueError("PairConfig needs 1 to 4 turns, and at least one batch per block and per doubled hint.")

    def shown(self, index: int) -> tuple[int, int]:
        """Which rendered batch the index-th one is, and how it is mirrored."""
        block, place = divmod(index, self.block * self.turns)
        return block * self.block + place % self.block, place // self.block


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The stage: steps and rates, losses, pairs."""

    train: TrainConfig
    objective: FlowObjective
    pairs: PairConfig


Recipe = stages.Recipe[NetworkConfig, Stage]
"""A full run."""

STEPS = 2400
"""About half an hour of one core, rendering included."""


def mini(
    *,
    seed: int = 17,
    steps: int = STEPS,
    batch_size: int = 8,
    network: NetworkConfig | None = None,
    pairs: PairConfig | None = None,
) -> Recipe:
    """The embedded flow: 1.3 M parameters from random weights."""
    train = TrainConfig(
        name="flow",
        steps=steps,
        batch_size=batch_size,
        weights={"coarse": 0.5, "whole": 0.5, "flow": 1.0, "likelihood": 0.1},
        learning_rate=6e-4,
        warmup_steps=min(100, steps // 5),
        weight_decay=1e-4,
        gradient_clip=1.0,
        ema_decay=0.995,
        precision="bf16",
        seed=seed,
        checkpoint_every=100,
    )
    stage = Stage(train=train, objective=FlowObjective(), pairs=pairs or PairConfig())
    return Recipe(name="flow-mini", networks=network or NetworkConfig(), stages=(stage,), seed=seed)
