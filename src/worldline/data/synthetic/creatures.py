"""Articulated bodies: people, animals and robot arms as chains of ellipsoids driven by a phase."""

from __future__ import annotations

import numpy as np

from worldline.data.synthetic.bodies import Body, hinge, limb, part
from worldline.data.synthetic.materials import colour_name, material
from worldline.data.synthetic.motion import rotate


def person(rng: np.random.Generator, phase: np.ndarray, contrast: float) -> Body:
    """A walking figure; phase [T] in radians of the gait (a constant phase stands still)."""
    h = float(rng.uniform(1.5, 1.95))
    shirt = material(rng, frequency=9.0, contrast=contrast, patterns=("noise", "stripes", "checks"))
    trousers = material(rng, frequency=14.0, contrast=0.6 * contrast)
    skin = material(rng, base=(0.72, 0.5, 0.38), frequency=12.0, contrast=0.3 * contrast, vary=0.35)
    shoes = material(rng, base="black", frequency=14.0, contrast=contrast)
    swing, still = float(rng.uniform(0.35, 0.6)), np.zeros((len(phase), 1))
    bob = 0.012 * h * np.cos(2 * phase)

    def at(x: float, y: float, z: float = 0.0) -> np.ndarray:
        return np.concatenate([still + x * h, -y * h + bob[:, None], still + z * h], -1)

    parts = [
        limb(shirt, at(0.0, 0.50), at(0.0, 0.83), 0.095 * h),
        part("ellipsoid", shirt, (0.125 * h, 0.075 * h, 0.075 * h), at(0.0, 0.775)),
        part("ellipsoid", trousers, (0.095 * h, 0.07 * h, 0.075 * h), at(0.0, 0.50)),
        part("ellipsoid", skin, (0.055 * h, 0.075 * h, 0.062 * h), at(0.0, 0.925, 0.01)),
    ]
    for side in (-1, 1):
        gait = phase + (np.pi / 2) * (1 - side)
        thigh = swing * np.sin(gait)
        knee = hinge(at(0.055 * side, 0.50), thigh, 0.245 * h)
        shin = thigh - 0.9 * swing * (1 - np.cos(gait + 0.6)) * 0.8
        ankle = hinge(knee, shin, 0.225 * h)
        parts += [limb(trousers, at(0.055 * side, 0.50), knee, 0.052 * h), limb(trousers, knee, ankle, 0.037 * h)]
        foot = ankle + np.array([0, 0.012 * h, 0.035 * h])
        parts.append(part("ellipsoid", shoes, (0.03 * h, 0.022 * h, 0.07 * h), foot))
        arm = -0.8 * swing * np.sin(gait)
        elbow = hinge(at(0.135 * side, 0.80), arm, 0.165 * h)
        hand = hinge(elbow, arm + 0.35 + 0.2 * np.sin(gait), 0.165 * h)
        parts += [limb(shirt, at(0.135 * side, 0.80), elbow, 0.033 * h), limb(skin, elbow, hand, 0.026 * h)]
    return Body(parts=tuple(parts), noun=f"person in {colour_name(shirt)}", radius=0.35 * h)


def animal(rng: np.random.Generator, phase: np.ndarray, contrast: float) -> Body:
    """A four-legged walker between a dog and a cow; phase [T] of the gait."""
    h = float(rng.uniform(0.45, 1.3))
    length = h * float(rng.uniform(1.1, 1.5))
    fur = material(
        rng, base=str(rng.choice(["brown", "black", "white", "grey", "orange"])), frequency=5.0 / h, contrast=contrast
    )
    still = np.zeros((len(phase), 1))
    bob = 0.015 * h * np.sin(2 * phase)[:, None]

    def at(x: float, y: float, z: float) -> np.ndarray:
        return np.concatenate([still + x * h, -y * h + bob, still + z * length], -1)

    nod = 0.1 * np.sin(phase)
    neck = at(0.0, 0.85, 0.45)
    head = neck + 0.42 * h * np.stack([0 * nod, -np.cos(0.7 + nod), np.sin(0.7 + nod)], -1)
    parts = [
        part("ellipsoid", fur, (0.23 * h, 0.26 * h, 0.58 * length), at(0.0, 0.72, 0.0)),
        limb(fur, neck, head, 0.13 * h),
        part("ellipsoid", fur, (0.12 * h, 0.12 * h, 0.24 * h), head + np.array([0, 0.02 * h, 0.1 * h])),
        limb(fur, at(0.0, 0.85, -0.5), hinge(at(0.0, 0.85, -0.5), -0.5 + 0.3 * np.sin(phase), 0.5 * h), 0.04 * h),
    ]
    for z, offset in ((0.38, 0.0), (-0.4, np.pi / 2)):
        for side in (-1, 1):
            gait = phase + offset + (np.pi / 2) * (1 - side)
            upper = 0.45 * np.sin(gait)
            knee = hinge(at(0.13 * side, 0.6, z), upper, 0.31 * h)
            foot = hinge(knee, upper - 0.35 * (1 - np.cos(gait + 0.5)), 0.3 * h)
            parts += [limb(fur, at(0.13 * side, 0.6, z), knee, 0.09 * h), limb(fur, knee, foot, 0.055 * h)]
    return Body(parts=tuple(parts), noun=f"{colour_name(fur)} animal", radius=0.7 * length)


def robot_arm(rng: np.random.Generator, phase: np.ndarray, contrast: float) -> Body:
    """A base with a three-link arm; phase [T] drives its joints."""
    scale = float(rng.uniform(0.35, 0.8))
    metal = material(rng, base=str(rng.choice(["orange", "white", "yellow", "blue"])), contrast=contrast, frequency=6.0)
    dark = material(rng, base="grey", contrast=contrast, frequency=8.0)
    turn = rotate(1, 0.8 * np.sin(0.7 * phase + 1))
    radius = 0.13 * scale
    joint = np.tile(np.array([0.0, -0.5 * scale, 0.0]), (len(phase), 1))
    parts = [part("cone", dark, (0.35 * scale, 0.25 * scale, 0.35 * scale), (0, -0.25 * scale, 0), taper=0.7)]
    angle = np.pi - 0.5 + 0.5 * np.sin(phase)
    for link in range(3):
        end = joint + (turn @ (hinge(joint * 0, angle, scale * (1.0 - 0.2 * link)))[..., None])[..., 0]
        parts += [limb(metal, joint, end, radius), part("ellipsoid", dark, (radius * 1.1,) * 3, end)]
        joint, radius = end, radius * 0.8
        angle = angle - 0.9 - 0.5 * np.sin(phase * (1.3 + 0.4 * link) + link)
    return Body(parts=tuple(parts), noun=f"{colour_name(metal)} robot arm", radius=1.6 * scale)
