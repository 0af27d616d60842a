"""Full training runs of MotionCrafter as functions: `mini` (what ships in the package) and `paper`.

A recipe is networks plus stages in order. Each stage says what it trains, on what clips, and with which objective; the
stage after it starts from its (averaged) weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from worldline.systems.motioncrafter.config import Fusion, MotionCrafterConfig, Paradigm, mini_config
from worldline.systems.motioncrafter.objective import (
    ConditionNoise,
    GeometryVaeObjective,
    MotionVaeObjective,
    UNetObjective,
)
from worldline.training import stages
from worldline.training.clips import frame_choice
from worldline.training.config import TrainConfig
from worldline.training.loop import Objective

VaeStrategy = Literal["original", "scratch", "decoder", "all"]
"""What stage 1 trains (paper, table 3): nothing, everything from random weights, the decoder, or everything."""

GEOMETRY = ("vae.encoder.", "vae.quant_conv.", "vae.post_quant_conv.", "vae.decoder.")
GEOMETRY_DECODER = ("vae.post_quant_conv.", "vae.decoder.")
MOTION = ("vae.encoder_2.", "vae.quant_conv_2.", "vae.post_quant_conv_2.", "vae.decoder_2.")
UNET = ("unet.",)
CONDITION = ("rgb_vae.", "image_encoder.")

DECODED_WEIGHTS = {"point_squared": 0.2, "point_relative": 1.0, "depth": 0.5, "local_depth": 0.3, "normal": 0.05}
"""Losses of decoded point maps in small runs."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """What training clips look like.

    Attributes:
        size: (H, W) in pixels.
        views: (frames, stride) of the clips of a batch; flow is composed over the stride.
        round: batches of scenes that are rendered, and then seen once in every view, before the next ones: rendering
            costs as much as training otherwise. All are rendered as long as the longest view spans.
        shutter: motion blur: the largest share of the time between frames during which the shutter is open.
    """

    size: tuple[int, int]
    views: tuple[tuple[int, int], ...]
    round: int = 32
    shutter: float = 0.0

    @property
    def span(self) -> int:
        """Frames rendered per clip."""
        return max((frames - 1) * stride + 1 for frames, stride in self.views)

    def scenes(self, index: int) -> int:
        """Number of the scene batch that a training batch is made of."""
        return index // (self.round * len(self.views)) * self.round + index % self.round

    def view(self, index: int) -> list[int]:
        """Which of the rendered frames make the clips of a training batch; where they start changes with the batch."""
        turn = index // self.round + index % self.round  # neighbours differ, and every scene batch meets every view
        frames, stride = self.views[turn % len(self.views)]
        room = self.span - (frames - 1) * stride
        return frame_choice(self.span, frames, stride, index % room)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        train: steps, rates, weights of the losses; its name names the files.
        trainable: prefixes of the parameters that are trained; all others stay as they are.
        objective: the named losses.
        clips: what it is trained on.
        motion_from_geometry: copy the geometry branch into the motion branch before the stage begins.
        measure_latents: before the stage begins, set the scaling factor so that latents have unit variance.
    """

    train: TrainConfig
    trainable: tuple[str, ...]
    objective: Objective
    clips: ClipConfig
    motion_from_geometry: bool = False
    measure_latents: bool = False


Recipe = stages.Recipe[MotionCrafterConfig, Stage]


def geometry_weights() -> Mapping[str, float]:
    """Losses of stage 1 in small runs."""
    return {"point_squared": 1.0, "point_relative": 1.0, "depth": 0.5, "local_depth": 0.3, "normal": 0.1, "kl": 1e-4}


def mini(
    *,
    seed: int = 7,
    paradigm: Paradigm = "deterministic",
    strategy: VaeStrategy = "all",
    fusion: Fusion = "unify",
    normalization: Literal["mean", "max"] = "mean",
    last_stage: bool = False,
) -> Recipe:
    """The embedded checkpoint: synthetic scenes, 48x64, three hours of one core; from random weights or a mini prior.

    Different from the paper because its priors are so much larger: the condition encoder and the image encoder are
    trained with the U-Net; points count far more than latents, and relatively; the frames carry little noise. In a
    fourth stage the deterministic networks see optical flow (`flow_input`), and the decoder of points learns with them.
    `strategy` says what stage 1 trains, as in `paper`; with no prior (`prior.mini_prior`) only "all" makes sense.
    `last_stage` leaves out the other three, for a run whose prior is a finished checkpoint.

    Raises:
        ValueError: the last stage alone of the denoising paradigm, which has no fourth stage.
    """
    if last_stage and paradigm == "denoising":
        raise ValueError("Only the deterministic paradigm has a last stage of its own; leave out --last-stage.")
    common: dict[str, Any] = {"precision": "bf16", "seed": seed, "weight_decay": 1e-2}
    common |= {"gradient_clip": 1.0, "ema_decay": 0.998}
    clips = ClipConfig(size=(48, 64), views=((4, 1), (4, 2)))
    pairs = ClipConfig(size=(48, 64), views=((2, 1), (2, 3)))  # autoencoders see single frames: more scenes teach more
    geometry = TrainConfig(
        name="geometry-vae",
        steps=700,
        batch_size=8,
        learning_rate=2e-3,
        warmup_steps=60,
        weights=geometry_weights(),
        **common,
    )
    motion = TrainConfig(
        name="motion-vae",
        steps=200,
        batch_size=8,
        learning_rate=1e-3,
        warmup_steps=20,
        weights={"flow": 100.0, "flow_size": 1.0, "kl": 1e-4},
        **common,
    )
    unet = TrainConfig(
        name="unet",
        steps=2100,
        batch_size=8,
        learning_rate=2e-3,
        warmup_steps=80,
        weights=unet_weights(paradigm),
        **common,
    )
    schedule = three_stages(
        (geometry, pairs), (motion, pairs), (unet, clips), strategy=strategy, motion_branch=fusion != "none"
    )
    flow = paradigm == "deterministic"
    if flow:
        schedule = schedule * (not last_stage) + (flow_stage(common),)
    networks = mini_config(paradigm=paradigm, fusion=fusion, normalization=normalization, optical_flow=flow)
    return Recipe(name="motioncrafter-mini", networks=networks, stages=schedule, seed=seed)


def flow_stage(common: Mapping[str, Any]) -> Stage:
    """The networks see optical flow; the decoder of points is trained with the U-Net, without latent terms."""
    train = TrainConfig(
        name="video",
        steps=9000,
        batch_size=8,
        learning_rate=1.5e-3,
        warmup_steps=100,
        weights={**DECODED_WEIGHTS, "flow_distance": 10.0},
        **common,
    )
    return Stage(
        train=train,
        trainable=UNET + ("rgb_vae.",) + GEOMETRY_DECODER,  # more would not fit a checkpoint of 60 MiB
        objective=UNetObjective(grids=(4, 16), condition_noise=ConditionNoise(log_mean=-4.0), decoded=2, latents=False),
        clips=ClipConfig(size=(48, 64), views=((4, 1), (4, 2), (4, 3)), shutter=0.6),
    )


def three_stages(
    geometry: tuple[TrainConfig, ClipConfig],
    motion: tuple[TrainConfig, ClipConfig],
    unet: tuple[TrainConfig, ClipConfig],
    *,
    strategy: VaeStrategy = "all",
    motion_branch: bool = True,
    grids: tuple[int, ...] = (4, 16),
    decoded: int | None = 2,
) -> tuple[Stage, ...]:
    """The stages of a small run: geometry VAE (not if the strategy is "original"), motion branch, U-Net."""
    first = Stage(
        train=geometry[0],
        trainable=GEOMETRY_DECODER if strategy == "decoder" else GEOMETRY,
        objective=GeometryVaeObjective(grids=grids),
        clips=geometry[1],
    )
    second = Stage(
        train=motion[0],
        trainable=MOTION,
        objective=MotionVaeObjective(),
        clips=motion[1],
        motion_from_geometry=True,
    )
    third = Stage(
        train=unet[0],
        trainable=UNET + CONDITION,
        objective=UNetObjective(grids=grids, condition_noise=ConditionNoise(log_mean=-4.0), decoded=decoded),
        clips=unet[1],
        measure_latents=True,
    )
    return (first,) * (strategy != "original") + (second,) * motion_branch + (third,)


def unet_weights(paradigm: Paradigm) -> Mapping[str, float]:
    """Losses of stage 3 in small runs."""
    if paradigm == "denoising":
        return {"latent_geometry": 1.0, "latent_motion": 1.0}
    return {
        "latent_geometry": 0.05,
        "latent_motion": 0.05,
        **DECODED_WEIGHTS,
        "flow": 30.0,
    }


def paper(*, paradigm: Paradigm = "deterministic", strategy: VaeStrategy = "all", seed: int = 42) -> Recipe:
    """The published schedule (spec 4.5 to 4.7): 40,000 + 20,000 + 40,000 steps, 320x640, one clip per process.

    Give it prior weights (SD's VAE, SVD's U-Net and encoders) unless the strategy is "scratch". Different from the
    published code: bfloat16 in place of fp16, gradients through the frozen decoders, flow under the flow mask, and a
    denoiser trained with its sampler's preconditioning.
    """
    common: dict[str, Any] = {
        "batch_size": 1,
        "schedule": "constant",
        "ema_decay": None,
        "seed": seed,
        "gradient_checkpointing": True,
        "checkpoint_every": 5000,
    }
    vae_clips = ClipConfig(size=(320, 640), views=tuple((8, stride) for stride in (1, 2, 3, 4, 5)))
    geometry = TrainConfig(
        name="geometry-vae",
        steps=40_000,
        learning_rate=1e-4,
        weights={"point_squared": 1.0, "depth": 1.0, "local_depth": 1.0, "normal": 0.2, "kl": 0.0},
        **common,
    )
    motion = TrainConfig(
        name="motion-vae",
        steps=20_000,
        learning_rate=1e-4,
        weights={"flow": 1.0, "flow_size": 0.01},
        **common,
    )
    deterministic = {"latent_geometry": 1.0, "latent_motion": 1.0, "point_squared": 1.0, "flow": 1.0}
    unet = TrainConfig(
        name="unet",
        steps=40_000,
        learning_rate=1e-5,
        weights=unet_weights(paradigm) if paradigm == "denoising" else deterministic,
        **common | {"precision": "bf16"},
    )
    first = Stage(
        train=geometry,
        trainable=GEOMETRY_DECODER if strategy == "decoder" else GEOMETRY,
        objective=GeometryVaeObjective(),
        clips=vae_clips,
    )
    second = Stage(
        train=motion,
        trainable=MOTION,
        objective=MotionVaeObjective(),
        clips=replace(vae_clips, views=((8, 1),)),
        motion_from_geometry=True,
    )
    third = Stage(
        train=unet,
        trainable=UNET,
        objective=UNetObjective(grids=(), chunk=8, condition_dropout=0.1 if paradigm == "denoising" else 0.0),
        clips=ClipConfig(size=(320, 640), views=((25, 1),)),
    )
    schedule = (second, third) if strategy == "original" else (first, second, third)
    return Recipe(
        name="motioncrafter-paper", networks=MotionCrafterConfig(paradigm=paradigm), stages=schedule, seed=seed
    )
