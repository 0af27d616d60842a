"""A depth prior is worth what cross-validation and its own correlation with parallax say; focal guesses likewise."""

from __future__ import annotations

import numpy as np
import pytest

from parallax_worlds import camera_state, true_r, uniform, world
from worldline.systems.parallax.fill import FillConfig, Guide, far_guesses, fill
from worldline.systems.parallax.observability import plausible_focal
from worldline.systems.parallax.prior import (
    PriorTrust,
    chain_prior,
    contrast,
    measure_trust,
    scale_prior,
    weighted_median,
)

SIZE = (48, 64)
RNG = np.random.default_rng(0)
FIELD = np.exp(0.6 * np.sin(np.mgrid[:48, :64][1] / 7.0) * np.cos(np.mgrid[:48, :64][0] / 6.0)).astype(np.float32)
"""Inverse depth with more than a plane in it."""


def seen_of(r: np.ndarray, c: np.ndarray, prior: np.ndarray):
    return lambda t: (r[t], c[t], c[t], prior[t])


def trust_of(r: np.ndarray, c: np.ndarray, prior: np.ndarray) -> PriorTrust:
    def guesses(t: int, kept: np.ndarray, guide: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return far_guesses(r[t], c[t] * kept, uniform(*SIZE), FillConfig(), Guide(value=guide.astype(np.float32)))

    return measure_trust(seen_of(r, c, prior), len(r), guesses)


def clip_of(prior: np.ndarray, frames: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse depth seen at two thirds of the pixels of every frame, and the prior."""
    c = np.tile((RNG.random(SIZE) < 0.67).astype(np.float32), (frames, 1, 1))
    return np.tile(FIELD, (frames, 1, 1)), c, np.tile(prior.astype(np.float32), (frames, 1, 1))


def test_a_true_prior_is_believed_and_noise_is_not() -> None:
    assert trust_of(*clip_of(3 * FIELD)).share.min() > 0.9
    junk = np.exp(0.6 * np.sin(np.mgrid[:48, :64][0] / 3.0 + 1)) * np.ones(SIZE)
    worthless = trust_of(*clip_of(junk))
    assert worthless.share.max() < 0.05 and worthless.exponent < 0.2


def test_a_prior_of_half_the_contrast_gets_its_contrast_back() -> None:
    trust = trust_of(*clip_of(5 * FIELD**0.7))
    assert trust.exponent == pytest.approx(1 / 0.7, rel=0.08)
    aligned = trust.apply(5 * FIELD**0.7, 0)
    assert np.abs(np.log(aligned / FIELD)).mean() < 0.05
    assert trust.apply(np.zeros(SIZE), 0).max() == 0


def test_where_nothing_is_seen_the_prior_alone_counts() -> None:
    r, _, prior = clip_of(FIELD)
    trust = trust_of(r, np.zeros_like(r), prior)
    assert np.allclose(trust.share, 1) and trust.exponent == pytest.approx(1) and np.allclose(trust.factor, 1)
    filled = fill(r[0], np.zeros(SIZE, np.float32), uniform(*SIZE), FillConfig(), Guide(value=2 * FIELD, share=0.0))
    assert np.allclose(filled.value, 2 * FIELD, rtol=0.05)  # out of reach of planes even a worthless guide counts


def test_an_anticorrelated_prior_is_dropped() -> None:
    found = contrast(seen_of(*clip_of(1 / FIELD)), np.arange(3))
    assert found.exponent == 0 and found.explained == 0
    assert found.correlation < -0.9


def test_the_mixture_is_hardly_worse_than_either_alone() -> None:
    """Left half seen, right half not: planes, prior, both; for a good and for a bad prior."""
    bad = np.exp(0.5 * np.sin(np.mgrid[:48, :64][0] / 4.0) * np.ones(SIZE))
    c = (np.mgrid[:48, :64][1] < 40).astype(np.float32)
    for prior in (FIELD * np.exp(0.1 * np.sin(np.mgrid[:48, :64][0] / 5.0)), bad):
        r, many, priors = np.tile(FIELD, (2, 1, 1)), np.tile(c, (2, 1, 1)), np.tile(prior.astype(np.float32), (2, 1, 1))
        trust = trust_of(r, many, priors)
        aligned = trust.apply(priors[0], 0).astype(np.float32)
        guide = Guide(value=aligned, share=float(trust.share[0]))
        tries = [fill(r[0], c, uniform(*SIZE), FillConfig(near=2.0), g).value for g in (None, guide)]
        plane, both = (float(np.abs(np.log(found / FIELD))[:, 44:].mean()) for found in tries)
        raw = np.log(priors[0] / FIELD)[:, 44:]
        alone = float(np.abs(raw - np.median(raw)).mean())
        assert both < 1.1 * min(plane, alone) + 0.02


def test_the_prior_is_scaled_frame_by_frame_even_where_nothing_is_seen() -> None:
    r = np.full((4, 20, 20), 2.0, np.float32)
    prior = r / np.array([1, 2, 3, 4], np.float32)[:, None, None]
    c = np.ones_like(r)
    c[2] = 0
    assert np.allclose(scale_prior(seen_of(r, c, prior), 4), [1, 2, np.sqrt(8), 4], rtol=1e-4)
    assert np.allclose(scale_prior(seen_of(r, np.zeros_like(r), prior), 4), 1)


def test_a_flickering_prior_is_steadied_along_the_flow_of_a_rotating_camera() -> None:
    scene = world(frames=5, move=(0, 0, 0), turn_deg=(0.5, 1.0, 0))
    flicker = np.exp(np.array([0.0, 0.3, -0.2, 0.1, 0.25]))
    prior = np.stack([true_r(scene, t) * flicker[t] for t in range(5)]).astype(np.float32)
    steadied = chain_prior(prior, scene.pairs((1, -1, 2, -2)), camera_state(scene)) * flicker
    assert np.ptp(np.log(steadied)) < 0.05


def test_weighted_median() -> None:
    assert weighted_median(np.array([1.0, 5.0, 9.0]), np.array([1.0, 1.0, 3.0])) == 9.0
    assert weighted_median(np.array([1.0]), np.array([0.0])) == 0.0


def test_a_focal_length_that_is_hardly_seen_stays_near_what_cameras_have() -> None:
    assert plausible_focal(300.0, 0.01, 320.0, 0.4) == pytest.approx(300, rel=0.01)  # well seen: kept
    assert plausible_focal(300.0, float("inf"), 320.0, 0.4) == 320  # not seen at all
    assert 300 < plausible_focal(300.0, 0.4, 320.0, 0.4) < 320  # in between
    assert plausible_focal(1400.0, 0.25, 320.0, 0.4) < 400  # contradicts what cameras have: not believed
