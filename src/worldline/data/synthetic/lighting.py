"""Light, sky and haze of a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """One light that casts hard shadows, ambient light from above and below, and the air.

    Attributes:
        position: [3] of the light in the stage; far away outdoors.
        colour: [3] irradiance of a surface that faces the light.
        reach: distance at which the light falls to a half; infinite outdoors.
        above: [3] ambient light on surfaces that face up.
        below: [3] ambient light on surfaces that face down.
        zenith: [3] sky colour overhead.
        horizon: [3] sky colour at the horizon, and of the haze.
        clouds: strength of the clouds in [0, 1].
        haze: distance in metres at which haze covers 63 %.
        exposure: gain of the camera.
    """

    position: np.ndarray
    colour: np.ndarray
    reach: float
    above: np.ndarray
    below: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    haze: float
    exposure: float


def sample_lighting(rng: np.random.Generator, kind: str, centre: np.ndarray, half: np.ndarray) -> Lighting:
    """Random light for a room (a lamp inside it) or for the open (a sun)."""
    warm = np.array([1.0, 0.93, 0.82]) ** rng.uniform(-0.6, 1.5)
    tint = 1 + 0.08 * rng.normal(size=3)
    zenith = np.array([0.22, 0.42, 0.78]) * rng.uniform(0.6, 1.2)
    overcast = float(rng.random() ** 2)
    zenith = zenith + (np.full(3, 0.7) - zenith) * overcast * 0.8
    horizon = zenith + (np.array([0.85, 0.87, 0.9]) - zenith) * rng.uniform(0.6, 0.95)
    if kind == "room":
        position = centre + half * np.array([rng.uniform(-0.6, 0.6), -rng.uniform(0.5, 0.9), rng.uniform(-0.7, 0.5)])
        strength, ambient = rng.uniform(0.5, 1.0), rng.uniform(0.25, 0.5)
        reach = float(np.linalg.norm(half) * rng.uniform(0.8, 2.0))
    else:
        azimuth, elevation = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(18, 75))
        along = np.array([np.cos(azimuth) * np.cos(elevation), -np.sin(elevation), np.sin(azimuth) * np.cos(elevation)])
        position = centre + 400.0 * along
        strength, ambient = (
            rng.uniform(0.5, 0.95) * (1 - 0.5 * overcast),
            rng.uniform(0.25, 0.42) * (1 + 0.5 * overcast),
        )
        reach = 1.0e9
    above = ambient * (0.5 + 0.5 * zenith / zenith.mean()) if kind != "room" else ambient * tint
    return Lighting(
        position=position,
        colour=strength * warm * tint,
        reach=reach,
        above=above,
        below=0.55 * ambient * np.array([1.0, 0.95, 0.88]),
        zenith=zenith,
        horizon=horizon,
        clouds=float(rng.uniform(0, 0.8)),
        haze=float(np.exp(rng.uniform(np.log(60), np.log(600)))) if kind != "room" else 1.0e9,
        exposure=float(rng.uniform(0.85, 1.25)),
    )
