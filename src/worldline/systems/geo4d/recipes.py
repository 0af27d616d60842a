"""Full training runs of Geo4D as functions: `mini` (what ships in the package) and `paper`.

A recipe is networks plus stages in order; each stage starts from the (averaged) weights of the one before. Modalities
join on the way (paper section 3.3): points at one size, points at several sizes, then rays and disparity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worldline.systems.geo4d.config import MODALITIES, Geo4DConfig, Modality, mini_config
from worldline.systems.geo4d.direct import DirectObjective
from worldline.systems.geo4d.objective import AutoencoderObjective, DenoisingObjective, PointDecoderObjective
from worldline.training import stages
from worldline.training.clips import frame_choice
from worldline.training.config import TrainConfig

POINTS: tuple[Modality, ...] = ("points",)
ENCODER = Path(__file__).with_name("weights") / "encoder.safetensors"
"""The video's encoder that the mini's regression begins with: that of motioncrafter-mini (see weights/README.md)."""
PUBLISHED_SIZES = ((384, 512), (320, 512), (256, 576), (192, 640))


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """What training clips look like.

    Attributes:
        sizes: (H, W) in pixels; a batch has one of them, taken in turn.
        views: (frames, stride) of the clips of a batch, taken in turn.
        video: rendered scenes are recorded as by a hand-held video camera, with motion blur and compression.
    """

    sizes: tuple[tuple[int, int], ...]
    views: tuple[tuple[int, int], ...]
    video: bool = False

    @property
    def span(self) -> int:
        """Frames that a source must have for every view."""
        return max((frames - 1) * stride + 1 for frames, stride in self.views)

    def size(self, index: int) -> tuple[int, int]:
        """Size of the clips of a batch."""
        return self.sizes[index % len(self.sizes)]

    def stride(self, index: int) -> int:
        """Stride of the clips of a batch; every size meets every stride."""
        return self.views[(index // len(self.sizes)) % len(self.views)][1]

    def view(self, index: int) -> list[int]:
        """Which frames of a source make the clips of a batch, counted from the clip's beginning."""
        frames, stride = self.views[(index // len(self.sizes)) % len(self.views)]
        return frame_choice((frames - 1) * stride + 1, frames, stride)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        train: steps, rates, weights of the losses; its name names the files.
        trainable: prefixes of the parameters that are trained; all others stay as they are.
        frozen: prefixes among them that stay nevertheless.
        objective: the named losses.
        clips: what it is trained on.
        modalities: what the U-Net predicts in this stage; widened from the stage before.
        points_from_vae: let the decoder of points begin as the common one.
        measure_latents: before the stage begins, set the scaling factor so that latents have unit variance.
        encoder: weights of the video's encoder to begin the stage with, by the model's names, or None: as it is.
    """

    train: TrainConfig
    trainable: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    objective: AutoencoderObjective | PointDecoderObjective | DenoisingObjective | DirectObjective
    clips: ClipConfig
    modalities: tuple[Modality, ...] = MODALITIES
    points_from_vae: bool = False
    measure_latents: bool = False
    encoder: Path | None = None

    def trains(self, name: str) -> bool:
        """Whether it trains the parameter of this name."""
        return name.startswith(self.trainable) and not name.startswith(self.frozen or ("\0",))


Recipe = stages.Recipe[Geo4DConfig, Stage]
"""Its networks have all modalities."""


POINT_DECODER_WEIGHTS = {"points_nll": 1.0, "points_mark": 1.0}
"""Eq. 3 where there is a point; where there is none, the mark that says so."""


AUTOENCODER_WEIGHTS = {
    **{"points": 0.5, "points_relative": 0.5, "points_mark": 0.5, "disparity": 1.0},
    **{"ray_direction": 1.0, "ray_moment": 1.0, "kl": 1e-5},
}
TRAINED = ("unet.", "condition_vae.", "context", "point_vae.")
DECODERS = ("vae.decoder.", "vae.post_quant_conv.")
ONE_TIME = ("unet.time_embed.",)
"""Tells the regression nothing: its timestep is always the last. Trained, its checkpoints would have over 60 MiB."""
FRAME_RATE = ("unet.fps_embedding.",)
"""Stays as it was learned for points while all modalities are denoised, for the same reason."""
MINI_CLIPS = ClipConfig(sizes=((48, 64),), views=((8, 1), (8, 2)))

DENOISED_STEPS = {"autoencoder": 1200, "point-decoder": 100, "points": 300, "points-sizes": 100, "all": 2500}
"""Steps of each stage of a mini that denoises, 73 minutes of one core; the regression needs the first alone."""
DIRECT_STEPS = {"direct": 2800, "anneal": 700}
"""Steps of the regression: an hour and a quarter."""

DIRECT_WEIGHTS: dict[str, float] = {
    **dict.fromkeys(MODALITIES, 0.05),
    "decoded_points_relative": 1.0,
    "decoded_points_aligned": 0.5,
    "decoded_points_nll": 0.05,
    "decoded_points_mark": 0.2,
    "decoded_disparity": 0.5,
    "decoded_disparity_aligned": 0.5,
    "decoded_disparity_mark": 0.2,
    "decoded_ray_direction": 0.25,
    "decoded_ray_moment": 0.25,
    "camera_turn": 0.05,
    "camera_place": 0.1,
}
"""Losses of the regression: decoded maps, relative to distance, count far more than latents."""


def mini(*, seed: int = 11, steps: Mapping[str, int] = DENOISED_STEPS | DIRECT_STEPS, direct: bool = True) -> Recipe:
    """The embedded system on synthetic scenes; nothing in it was trained on anything else.

    Different from the paper because there is no image or video prior here: an autoencoder of the four kinds of pictures
    is trained first, the video's encoder with the U-Net; decoded maps count beside latents, and the decoders go on
    learning from them. Then the U-Net is a regressor (`direct`) that reads optical flow, on scenes filmed by a bad
    camera. Without `direct` it denoises, modalities join on the way as in the paper, and most clips are shown pure
    noise, as the sampler takes a single step.
    """
    networks = mini_config()
    first = Stage(
        train=_mini_config("autoencoder", steps["autoencoder"], 3, 3e-3, AUTOENCODER_WEIGHTS, seed),
        trainable=("vae.",),
        objective=AutoencoderObjective(frames=4),
        clips=MINI_CLIPS,
    )
    rest = _direct(steps, seed) if direct else _denoised(steps, seed)
    return Recipe(name="geo4d-mini", networks=replace(networks, deterministic=direct), stages=(first, *rest), seed=seed)


def _denoised(steps: Mapping[str, int], seed: int) -> tuple[Stage, ...]:
    """The paper's way: a decoder of points, then the U-Net for points, for several sizes, for all modalities."""
    one, many = MINI_CLIPS, replace(MINI_CLIPS, sizes=((48, 64), (48, 64), (64, 48), (32, 96)))
    decoded = {"decoded_points_nll": 0.1, "decoded_points_relative": 0.5, "decoded_points_mark": 0.3}
    others = {"decoded_disparity": 1.0, "decoded_ray_direction": 0.5, "decoded_ray_moment": 0.5}
    denoising = DenoisingObjective(last_share=0.8, decoded=2)

    def config(name: str, batch: int, rate: float, weights: dict[str, float]) -> TrainConfig:
        return _mini_config(name, steps[name], batch, rate, weights, seed)

    second = Stage(
        train=config("point-decoder", 4, 1e-3, POINT_DECODER_WEIGHTS),
        trainable=("point_vae.",),
        objective=PointDecoderObjective(frames=3),
        clips=one,
        modalities=POINTS,
        points_from_vae=True,
    )
    third = Stage(
        train=config("points", 4, 2e-3, {"points": 1.0, **decoded}),
        trainable=TRAINED,
        objective=denoising,
        clips=one,
        modalities=POINTS,
        measure_latents=True,
    )
    fourth = replace(
        third, train=config("points-sizes", 4, 1e-3, {"points": 1.0, **decoded}), clips=many, measure_latents=False
    )
    fifth = Stage(
        train=config("all", 4, 2e-3, {**dict.fromkeys(MODALITIES, 1.0), **decoded, **others}),
        trainable=TRAINED + DECODERS,
        frozen=FRAME_RATE,
        objective=denoising,
        clips=many,
    )
    return second, third, fourth, fifth


def _direct(steps: Mapping[str, int], seed: int) -> tuple[Stage, ...]:
    """Regression at a constant rate, then the same while the rate falls: how long it lasts need not be known before.

    Short clips show more scenes for the same time than long ones; float32, which is no slower here than bfloat16.
    """
    sizes = ((48, 64), (48, 80), (48, 64), (48, 80), (64, 48))
    clips = ClipConfig(sizes=sizes, views=((4, 1), (4, 2), (4, 1), (4, 3), (8, 1)), video=True)

    def config(name: str, shift: int, **changes: Any) -> TrainConfig:
        known = _mini_config(name, steps[name], 8, 1.5e-3, DIRECT_WEIGHTS, seed + shift)
        return replace(known, precision="no", ema_decay=0.995, checkpoint_every=50, **changes)

    regression = Stage(
        train=config("direct", 1, schedule="constant"),
        trainable=TRAINED + DECODERS,
        frozen=ONE_TIME,
        objective=DirectObjective(),
        clips=clips,
        points_from_vae=True,
        measure_latents=True,
        encoder=ENCODER,
    )
    falling = replace(regression, train=config("anneal", 2), points_from_vae=False, measure_latents=False, encoder=None)
    return regression, falling


def _mini_config(name: str, steps: int, batch: int, rate: float, weights: dict[str, float], seed: int) -> TrainConfig:
    return TrainConfig(
        name=name,
        steps=steps,
        batch_size=batch,
        learning_rate=rate,
        warmup_steps=min(40, steps // 5),
        weights=weights,
        precision="bf16",
        seed=seed,
        weight_decay=1e-2,
        gradient_clip=1.0,
        ema_decay=0.98,
    )


def paper(*, seed: int = 23) -> Recipe:
    """The paper's schedule: batch 32, AdamW, about a week on 4 H100; start from a video model's weights as prior.

    Step counts and the learning rate are not in the text that was available to us (the rate is the one commonly quoted
    for it, 1e-5): they are choices. The data are the caller's `source`, see `train.mixture`; five data sets in ratios
    1 : 1 : 1 : 1 : 2.
    """
    common: dict[str, Any] = {
        "batch_size": 1,
        "accumulate": 8,  # times 4 processes is the paper's 32
        "schedule": "constant",
        "ema_decay": None,
        "seed": seed,
        "precision": "bf16",
        "gradient_checkpointing": True,
        "checkpoint_every": 2000,
    }
    one = ClipConfig(sizes=((320, 512),), views=tuple((16, stride) for stride in (1, 2, 3, 4)))
    many = replace(one, sizes=PUBLISHED_SIZES)

    def denoising(name: str, steps: int, clips: ClipConfig, modalities: tuple[Modality, ...]) -> Stage:
        train = TrainConfig(
            name=name,
            steps=steps,
            learning_rate=1e-5,
            warmup_steps=500,
            weights={name: 1 / len(modalities) for name in modalities},
            **common,
        )
        return Stage(
            train=train,
            trainable=("unet.", "context"),
            objective=DenoisingObjective(),
            clips=clips,
            modalities=modalities,
        )

    decoder = TrainConfig(
        name="point-decoder",
        steps=20_000,
        learning_rate=1e-5,
        warmup_steps=500,
        weights=POINT_DECODER_WEIGHTS,
        **common,
    )
    first = Stage(
        train=decoder,
        trainable=("point_vae.",),
        objective=PointDecoderObjective(frames=4),
        clips=one,
        modalities=POINTS,
        points_from_vae=True,
    )
    schedule = (
        first,
        denoising("points", 20_000, one, POINTS),
        denoising("points-sizes", 20_000, many, POINTS),
        denoising("all", 40_000, many, MODALITIES),
    )
    return Recipe(name="geo4d-paper", networks=Geo4DConfig(fps=None), stages=schedule, seed=seed)
