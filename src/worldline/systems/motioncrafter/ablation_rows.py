"""The paper's ablations in miniature: which rows there are, and what they are asked.

Table 3   what points are divided by (max, mean) x what of the geometry VAE is trained (original, scratch, decoder, all)
Table 4   geometry and motion apart or together, in the VAE (the motion decoder sees the geometry latent) and in the
          U-Net (one for both latents, or one each)
Prior     the U-Net, or everything, from random weights in place of the miniature prior
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from worldline.systems.motioncrafter.config import Fusion
from worldline.systems.motioncrafter.recipes import VaeStrategy

REFERENCE = "mean, all"
"""The paper's own choice, a row of every table: unify in VAE and U-Net, everything from the prior."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        normalization: what points are divided by.
        strategy: what of the geometry VAE stage 1 trains.
        fusion: whether the motion decoder sees the geometry latent ("unify") or not ("separate").
        unets: one U-Net for both latents, or one for each.
        video_prior: the U-Net and its condition encoders start from the prior.
    """

    normalization: Literal["mean", "max"] = "mean"
    strategy: VaeStrategy = "all"
    fusion: Fusion = "unify"
    unets: Literal["one", "two"] = "one"
    video_prior: bool = True


ROWS: Mapping[str, Row] = {
    **{
        f"{normalization}, {strategy}": Row(normalization=normalization, strategy=strategy)
        for normalization in ("max", "mean")
        for strategy in ("original", "scratch", "decoder", "all")
    },
    "separate VAE, two U-Nets": Row(fusion="separate", unets="two"),
    "separate VAE, one U-Net": Row(fusion="separate"),
    "U-Net from scratch": Row(video_prior=False),
    "everything from scratch": Row(strategy="scratch", video_prior=False),
}

TABLES: Mapping[str, tuple[str, ...]] = {
    "Table 3: normalisation, what of the geometry VAE is trained": tuple(ROWS)[:8],
    "Table 4: geometry and motion apart or together": (
        "separate VAE, two U-Nets",
        "separate VAE, one U-Net",
        REFERENCE,
    ),
    "Prior: from pretrained or from scratch": ("everything from scratch", "U-Net from scratch", REFERENCE),
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Some rows are better than others, pair by pair, on a metric.

    Attributes:
        text: the finding, as the paper has it.
        pairs: (better row, worse row); differences are averaged over the pairs.
        metric: what decides, a name of `evaluation.motion_ablation.METRICS`.
    """

    text: str
    pairs: tuple[tuple[str, str], ...]
    metric: str


def claims(trivial: str) -> tuple[Claim, ...]:
    """What the paper finds, with the metric it is about; and that its choice beats a predictor that does not look."""

    def better(text: str, worse: str, metric: str) -> Claim:
        return Claim(text=text, pairs=((REFERENCE, worse),), metric=metric)

    trained = tuple((f"mean, {kind}", f"max, {kind}") for kind in ("scratch", "decoder", "all"))
    both = "separate VAE, two U-Nets", "separate VAE, one U-Net"
    return (
        better("the system beats the mean point map", trivial, "relp"),
        better("its scene flow beats no motion, on what moves", trivial, "epe_moving"),
        Claim(text="mean normalisation beats max (VAE trained)", pairs=trained, metric="relp"),
        Claim(
            text="mean beats max even in a VAE of pictures alone",
            pairs=(("mean, original", "max, original"),),
            metric="relp",
        ),
        better("training the VAE on geometry beats the VAE of pictures", "mean, original", "relp"),
        better("training encoder and decoder beats the decoder alone", "mean, decoder", "relp"),
        better("a VAE that starts pretrained beats one from scratch", "mean, scratch", "relp"),
        better("a motion decoder that sees geometry beats one that does not", both[1], "epe_moving"),
        better("the same, of the VAE alone", both[1], "vae_epe_moving"),
        Claim(text="one U-Net beats two, points", pairs=((both[1], both[0]),), metric="relp"),
        Claim(text="one U-Net beats two, motion", pairs=((both[1], both[0]),), metric="epe_moving"),
        better("a pretrained U-Net beats one from scratch", "U-Net from scratch", "relp"),
        better("pretrained beats everything from scratch", "everything from scratch", "relp"),
    )
