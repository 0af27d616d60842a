"""The verbs: load_video, reconstruct, generate, synthesize, save, load, view, evaluate, train, systems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldline.api.choice import PUBLISHED as PUBLISHED
from worldline.api.reconstruction import AUTO as AUTO
from worldline.api.reconstruction import AUTO_PRIOR as AUTO_PRIOR
from worldline.api.reconstruction import PARALLAX as PARALLAX
from worldline.api.reconstruction import REFINE as REFINE
from worldline.api.reconstruction import prior_and_parallax as prior_and_parallax
from worldline.api.reconstruction import reconstruct as reconstruct
from worldline.api.run import check_size as check_size
from worldline.api.run import choose_device as choose_device
from worldline.api.run import working_size as working_size
from worldline.api.synthesis import PICTURE_SYSTEM as PICTURE_SYSTEM
from worldline.api.synthesis import check_synthesis as check_synthesis
from worldline.api.synthesis import generate as generate
from worldline.api.synthesis import synthesize as synthesize
from worldline.api.training import train as train
from worldline.io.store import load as load
from worldline.io.store import save as save
from worldline.io.video import load_video as load_video
from worldline.scene import Scene4D
from worldline.systems.registry import CARDS
from worldline.systems.registry import card as card

if TYPE_CHECKING:
    from worldline.evaluation.report import Report
    from worldline.viewer.studio import Studio


def systems() -> list[dict[str, Any]]:
    """Every system as a row: name, summary, kind, weights, licence, needs, installed, embedded, caution."""
    names = ("name", "summary", "kind", "weights", "licence", "needs", "installed", "embedded", "caution")
    return [{name: getattr(entry, name) for name in names} for entry in CARDS.values()]


def evaluate(prediction: Scene4D, truth: Scene4D, protocol: str = "worldline-v1") -> Report:
    """Score a prediction against truth under a named protocol (see `docs/evaluation.md`).

    Raises:
        ValueError: there is no such protocol.
    """
    from worldline.evaluation import engine
    from worldline.evaluation.protocols import PROTOCOLS

    if protocol not in PROTOCOLS:
        raise ValueError(f"There is no protocol '{protocol}'; choose one of: {', '.join(PROTOCOLS)}.")
    return engine.evaluate(prediction, truth, PROTOCOLS[protocol])


def view(scene: Scene4D | str | Path, port: int = 8080) -> Studio:
    """Serve a scene to the browser at 127.0.0.1; `.url` is where, `.stop()` ends it, `.wait()` waits for Ctrl-C."""
    from worldline.viewer.studio import view as serve

    return serve(scene, port)
