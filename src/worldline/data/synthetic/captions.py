"""One sentence about a scene, from what was put into it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldline.data.synthetic.bodies import Body
from worldline.data.synthetic.cameras import CameraPath

_PLACES = {"room": "in a room", "ground": "outdoors", "terrain": "among hills"}
_CAMERAS = {
    "handheld": "the camera is handheld",
    "orbit": "the camera circles the scene",
    "dolly": "the camera travels",
    "zoom": "the camera zooms",
    "pan": "the camera pans",
    "static": "the camera stands still",
}


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _towards(body: Body, view: np.ndarray) -> str:
    """Main direction of a body's travel as the first camera sees it."""
    centres = body.parts[0].pose[:, :3, 3]
    step = view[:3, :3].T @ (centres[-1] - centres[0])
    if body.motion in ("swings", "squashes and stretches", "tumbles") or np.abs(step).max() < 0.02:
        return ""
    if abs(step[0]) > abs(step[2]):
        return " to the right" if step[0] > 0 else " to the left"
    return " away" if step[2] > 0 else " towards the camera"


def caption(moving: Sequence[Body], place: str, path: CameraPath) -> str:
    """Such as "A red ball rolls to the left in a room, the camera stands still."."""
    acts = [f"{_article(body.noun)} {body.motion}{_towards(body, path.cam2world[0])}" for body in moving[:3]]
    what = ", ".join(acts) if acts else "nothing moves"
    sentence = f"{what} {_PLACES[place]}, {_CAMERAS[path.kind]}."
    return sentence[0].upper() + sentence[1:]
