"""Full training runs of MoRe4D as functions: `mini`, `wan_1_3b` and `paper` (spec 1.4, 2.4, 4.6, section 10).

A recipe is networks plus stages in order: prior, autoencoder, generator, inpainter. Each says what it trains, on what
samples, and with which objective.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from worldline.systems.more4d import lora
from worldline.systems.more4d.config import MoRe4DConfig, mini_config, paper_config, wan_1_3b_config
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.objective import (
    GeneratorObjective,
    InpainterObjective,
    PriorObjective,
    VaeObjective,
    train_only,
)
from worldline.systems.more4d.pool import PoolConfig, Seen
from worldline.training import stages
from worldline.training.config import TrainConfig

PRIOR = ("generator.omnimae_extractor.",)
ADAPTORS = ("vae.trajectory_encoder.", "vae.trajectory_decoder.")
DECODER = ("vae.vae.decoder.",)
VAE = ("vae.",)
GENERATOR = ("generator.", "text.")
INPAINTER = ("inpainter.",)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Train additions beside the linear layers of the inpainter in place of its weights."""

    rank: int = 128
    alpha: float = 64.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        train: steps, rates, weights of the losses; its name names the files.
        trainable: prefixes of the parameters that are trained; all others stay as they are.
        frozen: prefixes among them that stay nevertheless.
        objective: the named losses.
        samples: what it is trained on: pictures that move, or videos with holes; their latents, which are made once.
        lora: train these additions to the inpainter instead; `trainable` is then ignored.
        pool: which synthetic scenes there are, where no other source is given.
        measure_latents: before the stage begins, set the constants that standardise latents from its own samples.
    """

    train: TrainConfig
    trainable: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    objective: PriorObjective | VaeObjective | GeneratorObjective | InpainterObjective
    samples: Seen = "motion"
    pool: PoolConfig = PoolConfig()
    lora: LoraConfig | None = None
    measure_latents: bool = False

    def begin(self, model: MoRe4D) -> list[str]:
        """Bring a model into the state in which the stage starts; returns the names of what will be trained."""
        if self.lora is not None:
            if not any(isinstance(module, lora.LoRALinear) for module in model.inpainter.modules()):
                lora.attach(model.inpainter, self.lora.rank, self.lora.alpha)
            train_only(model, ("inpainter.",))
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(".addition." in name)
        else:
            train_only(model, self.trainable, self.frozen)
        model.train()
        for network in (model.generator, model.inpainter):
            network.gradient_checkpointing = self.train.gradient_checkpointing
        return trained(model)


def trained(model: nn.Module) -> list[str]:
    """Names of the parameters that require a gradient."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


Recipe = stages.Recipe[MoRe4DConfig, Stage]


MINI_POOL = PoolConfig(shards=48, scenes=32)
"""1,536 scenes, and as many mirror images."""
GENERATOR_POOL = PoolConfig(shards=144, scenes=32)
"""These and twice as many more: what may happen is learned from many scenes, how to write it down from few."""


def mini(*, seed: int = 11, networks: MoRe4DConfig | None = None) -> Recipe:
    """The embedded size, everything from random weights on synthetic scenes, in about an hour of one core.

    Scenes are rendered once; the transformers learn from latents that are encoded once. The inpainter comes first
    because its videos give the constants of all latents; those of motion are measured on top of them. The generator
    sees no noise (`MoRe4DConfig.deterministic`); cells that move count more, or no motion would be a good answer.
    """
    common: dict[str, Any] = {"precision": "bf16", "seed": seed, "ema_decay": 0.99, "weight_decay": 1e-2}
    prior = TrainConfig(
        name="prior", steps=600, batch_size=16, learning_rate=1e-3, warmup_steps=20, weights={"patches": 1.0}, **common
    )
    vae = TrainConfig(
        name="vae",
        steps=1500,
        batch_size=4,
        learning_rate=2e-3,
        warmup_steps=50,
        weights={"motion": 10.0, "picture": 1.0, "depth": 0.5, "kl": 1e-5},
        **common,
    )
    generator = TrainConfig(
        name="generator", steps=4000, batch_size=16, learning_rate=1e-3, warmup_steps=100, weights={"velocity": 1.0},
        **common,
    )  # fmt: skip
    return Recipe(
        name="more4d-mini",
        networks=networks or mini_config(),
        stages=(
            Stage(train=prior, trainable=PRIOR, objective=PriorObjective(), pool=MINI_POOL),
            Stage(
                train=vae, trainable=VAE, objective=VaeObjective(pictures=True, moving=4.0, noise=0.05), pool=MINI_POOL
            ),
            Stage(
                train=replace(generator, name="inpainter", steps=700),
                trainable=INPAINTER,
                objective=InpainterObjective(shift=3.0, from_mean=True),
                samples="fill latents",
                pool=MINI_POOL,
                measure_latents=True,
            ),
            Stage(
                train=generator,
                trainable=GENERATOR,
                frozen=PRIOR,
                objective=GeneratorObjective(from_mean=True, moving=4.0),
                samples="motion latents",
                pool=GENERATOR_POOL,
                measure_latents=True,
            ),
        ),
        seed=seed,
    )


def paper(*, seed: int = 42, networks: MoRe4DConfig | None = None) -> Recipe:
    """The published schedule: 5,000 steps of adaptors and decoder, 2,000 of the generator, 10,000 of a LoRA.

    Give it Wan2.1-Fun's weights and OmniMAE's. Different from the published code: float32 master weights and sigmas,
    batches of four in all by accumulation, and no update is skipped.
    """
    common: dict[str, Any] = {
        "precision": "bf16",
        "schedule": "constant",
        "ema_decay": None,
        "seed": seed,
        "batch_size": 1,
        "accumulate": 4,
        "warmup_steps": 100,
        "gradient_checkpointing": True,
        "checkpoint_every": 200,
    }
    vae = TrainConfig(
        name="vae", steps=5000, learning_rate=5e-6, weights={"motion": 1.0, "kl": 1e-6}, gradient_clip=1.0, **common
    )
    generator = TrainConfig(
        name="generator",
        steps=1800,
        learning_rate=2e-5,
        weights={"velocity": 1.0},
        gradient_clip=0.05,
        weight_decay=3e-2,
        epsilon=1e-10,
        **common,
    )
    inpainter = replace(generator, name="inpainter", steps=10_000, learning_rate=1e-4)
    return Recipe(
        name="more4d-paper",
        networks=networks or replace(paper_config(), focal=None, reference="picture"),
        stages=(
            Stage(train=vae, trainable=ADAPTORS + DECODER, objective=VaeObjective()),
            Stage(
                train=generator,
                trainable=("generator.",),
                frozen=PRIOR,
                objective=GeneratorObjective(),
                samples="motion latents",
            ),
            Stage(
                train=inpainter,
                trainable=(),
                objective=InpainterObjective(),
                samples="fill latents",
                lora=LoraConfig(),
            ),
        ),
        seed=seed,
    )


def wan_1_3b(*, seed: int = 42) -> Recipe:
    """The paper's schedule on the 1.3B backbone."""
    return replace(paper(seed=seed, networks=wan_1_3b_config()), name="more4d-1.3b")
