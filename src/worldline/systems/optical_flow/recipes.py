"""Training run of the flow network that ships in the package: one stage."""

from __future__ import annotations

from dataclasses import dataclass

from worldline.flow.network import NetworkConfig
from worldline.systems.optical_flow.objective import FlowObjective
from worldline.training import stages
from worldline.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """What training pairs look like; batches take sizes and gaps in turn.

    Attributes:
        sizes: (H, W) in pixels, multiples of 8.
        gaps: frames between the pictures of a pair.
        unhinted: every so many-th batch has no hint, so that the network can match by itself.
    """

    sizes: tuple[tuple[int, int], ...] = ((96, 128), (128, 96), (96, 160))
    gaps: tuple[int, ...] = (1, 2, 4, 1, 3)
    unhinted: int = 7

    def __post_init__(self) -> None:
        """Refuse what would never give a hint."""
        if self.unhinted < 2:
            raise ValueError(f"PairConfig.unhinted must be at least 2, got {self.unhinted}.")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The stage: steps and rates, losses, pairs."""

    train: TrainConfig
    objective: FlowObjective
    pairs: PairConfig


Recipe = stages.Recipe[NetworkConfig, Stage]
"""A full run."""

STEPS = 2200
"""About half an hour of one core."""


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
        weights={"coarse": 1.0, "flow": 1.0, "likelihood": 0.1},
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
