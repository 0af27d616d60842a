"""Finished stages of clips, by the content that decides them: a restart takes them from here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.data.curate.tracked import Tracked
from worldline.io.jsonable import jsonable
from worldline.io.partial import PartialRun
from worldline.scene import Cameras, Provenance, Tracks4D

FACTS = "facts"


def content_key(*parts: Any) -> str:
    """Hash of JSON-able parts: the same content, the same key."""
    return hashlib.sha256(json.dumps(jsonable(parts), sort_keys=True).encode()).hexdigest()


class StageCache:
    """Facts and tensors of stages, in OUT/stages.partial; each appears whole or not at all."""

    def __init__(self, out: Path) -> None:
        """Look for what earlier runs left.

        Raises:
            FileExistsError: OUT/stages.partial is something else.
        """
        self._run = PartialRun(out / "stages", {"format": 1})

    def get(self, stage: str, key: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What was put; None if nothing was, or it is damaged."""
        stored = self._run.get(f"{stage}-{key[:32]}")
        if stored is None:
            return None
        facts = json.loads(stored.pop(FACTS).numpy().tobytes())
        return facts, stored

    def put(self, stage: str, key: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Store a finished stage.

        Raises:
            OSError: the disk is full or read-only.
        """
        text = torch.frombuffer(bytearray(json.dumps(jsonable(facts)).encode()), dtype=torch.uint8)
        self._run.put(f"{stage}-{key[:32]}", {**(tensors or {}), FACTS: text})

    def drop(self, stage: str, key: str) -> None:
        """Forget a stage that is no longer needed."""
        (self._run.folder / f"{stage}-{key[:32]}.safetensors").unlink(missing_ok=True)


def to_stored(tracked: Tracked) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Tracks as facts and tensors."""
    tracks, cameras = tracked.tracks, tracked.tracks.cameras
    tensors = {
        "points": tracks.points,
        "visible": tracks.visible,
        "colors": tracks.colors,
        "timestamps": tracks.timestamps,
        "valid": tracked.valid,
        "moving": tracked.moving,
    }
    if tracked.pixels is not None:
        tensors["pixels"] = tracked.pixels
    if cameras is not None:
        tensors |= {"intrinsics": cameras.intrinsics, "cam2world": cameras.cam2world}
    facts = {
        "scale": tracks.scale,
        "notes": dict(tracked.notes),
        "system": tracks.provenance.system,
        "weights_sha256": tracks.provenance.weights_sha256,
    }
    return facts, tensors


def from_stored(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tracked:
    """The inverse of `to_stored`; of the provenance the system and its weights are kept."""
    height, width = tensors["valid"].shape
    cameras = None
    if "cam2world" in tensors:
        cameras = Cameras(
            intrinsics=tensors["intrinsics"], cam2world=tensors["cam2world"], size=(int(height), int(width))
        )
    tracks = Tracks4D(
        points=tensors["points"],
        visible=tensors["visible"],
        reference=0,
        colors=tensors["colors"],
        timestamps=tensors["timestamps"],
        cameras=cameras,
        scale=facts["scale"],
        provenance=Provenance(system=facts["system"], weights_sha256=facts["weights_sha256"]),
    )
    return Tracked(
        tracks=tracks,
        valid=tensors["valid"],
        moving=tensors["moving"],
        pixels=tensors.get("pixels"),
        notes=facts["notes"],
    )
