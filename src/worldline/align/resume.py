"""Stages of an alignment kept on disk, so that a long one that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from worldline.align.config import AlignConfig, Priors
from worldline.align.fuse import RobustFusion
from worldline.align.initialize import Start
from worldline.align.loop_matches import Loops
from worldline.align.noise import ScaleTable
from worldline.align.resection import Rig
from worldline.align.sampling import Samples
from worldline.align.state import State
from worldline.align.synchronize import Pairs
from worldline.geometry.pose import Similarity

_KNOWN: dict[str, Any] = {
    cls.__name__: cls for cls in (Start, Rig, Pairs, Loops, Similarity, State, ScaleTable, RobustFusion)
}
Value = TypeVar("Value")


@runtime_checkable
class Shelf(Protocol):
    """Keeps named tensors, each group whole or not at all (`io.partial.PartialRun`)."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was put under this key, or None."""
        ...

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors under this key."""
        ...


class Stages:
    """Results of stages, by what they follow from: other windows, priors or settings find nothing."""

    def __init__(self, shelf: Shelf | None, samples: Samples, priors: Priors, config: AlignConfig) -> None:
        self.shelf = shelf
        self.name = "" if shelf is None else _fingerprint(samples, priors, config)

    def once(self, stage: str, make: Callable[[], Value]) -> Value:
        """The result of a stage: read if it was finished before, else made and kept."""
        if self.shelf is None:
            return make()
        key = f"align-{self.name}-{stage}"
        kept = self.shelf.get(key)
        if kept is not None:
            return unpack(kept)
        made = make()
        self.shelf.put(key, pack(made))
        return made


def _fingerprint(samples: Samples, priors: Priors, config: AlignConfig) -> str:
    digest = hashlib.sha256(repr((config, samples.has_rays)).encode())
    values = [samples.points, samples.weight, samples.disparity, samples.scene_flow, samples.frame, samples.window]
    for value in [*values, *(getattr(priors, field.name) for field in fields(priors))]:
        if isinstance(value, Tensor):
            digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def pack(value: Any) -> dict[str, Tensor]:
    """Dataclasses of tensors, numbers and texts as named tensors."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_layout(value, tensors))
    return {**tensors, "layout": torch.tensor(list(text.encode()), dtype=torch.uint8)}


def _layout(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value if value.numel() else torch.zeros(value.shape, dtype=value.dtype)  # no odd strides
        return {"tensor": name}
    if is_dataclass(value):
        assert type(value).__name__ in _KNOWN, f"{type(value).__name__} cannot be kept"
        return {
            "class": type(value).__name__,
            "of": {f.name: _layout(getattr(value, f.name), tensors) for f in fields(value)},
        }
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_layout(v, tensors) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[key, _layout(v, tensors)] for key, v in value.items()]}
    return {"value": value}


def unpack(tensors: dict[str, Tensor]) -> Any:
    """What was packed."""
    return _value(json.loads(bytes(tensors["layout"].tolist()).decode()), tensors)


def _value(layout: Any, tensors: dict[str, Tensor]) -> Any:
    if "tensor" in layout:
        return tensors[layout["tensor"]]
    if "class" in layout:
        return _KNOWN[layout["class"]](**{name: _value(v, tensors) for name, v in layout["of"].items()})
    if "tuple" in layout:
        return tuple(_value(v, tensors) for v in layout["tuple"])
    if "list" in layout:
        return [_value(v, tensors) for v in layout["list"]]
    if "dict" in layout:
        return {key: _value(v, tensors) for key, v in layout["dict"]}
    return layout["value"]
