"""Worldline: a video or a picture in, a 4D scene out.

The public names are imported when they are first used, so that `import worldline` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_HOME = {
    "Cameras": "scene",
    "Provenance": "scene",
    "Scene4D": "scene",
    "Tracks4D": "scene",
    "Video": "scene",
    "evaluate": "api",
    "generate": "api",
    "load": "api",
    "load_video": "api",
    "reconstruct": "api",
    "save": "api",
    "synthesize": "api",
    "systems": "api",
    "train": "api",
    "view": "api",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from worldline.api import (  # noqa: F401
        evaluate,
        generate,
        load,
        load_video,
        reconstruct,
        save,
        synthesize,
        systems,
        train,
        view,
    )
    from worldline.scene import Cameras, Provenance, Scene4D, Tracks4D, Video  # noqa: F401


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'worldline' has no attribute '{name}'")
    return getattr(importlib.import_module(f"worldline.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
