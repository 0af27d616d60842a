"""The compact record of a sample: one .npz, no pickles, and what it loses.

depth      [H, W] float32      z of the first frame's points on their rays; 0 where there is none
moved      [H, W] bits         points with any displacement
motion     [T-1, M, 3] float16 normalised displacement of those (spec 1.3c); the others stand still exactly
visible    [T, H, W] bits, covered [T, H, W] bits (the moved points cover the pixel of the camera of that time)
rgb        [H, W, 3] uint8, intrinsics, cam2world, timestamps float64, facts: JSON in UTF-8
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.data.curate.gates import normalization
from worldline.data.curate.tracked import Tracked
from worldline.geometry import pointmap
from worldline.geometry.normalize import DepthGuidedMotion
from worldline.io.atomic import atomic_file
from worldline.scene import Cameras, Provenance, Tracks4D

SUFFIX = "_record.npz"
VERSION = 1
LARGEST = 6.0e4
"""float16 ends at 65504."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A sample as stored.

    Attributes:
        tracks: with cameras; the first frame's points lie on their rays, zero where there is no surface.
        valid: [H, W] where the first frame sees a surface.
        moving: [H, W] points that are displaced at some time.
        covered: [T, H, W] pixels that a rendering of the moved points covers.
        facts: caption, who wrote it, source, gates.
    """

    tracks: Tracks4D
    valid: Bool[Tensor, "H W"]
    moving: Bool[Tensor, "H W"]
    covered: Bool[Tensor, "T H W"]
    facts: Mapping[str, Any]


def snapped(tracked: Tracked) -> tuple[Tensor, DepthGuidedMotion]:
    """Depth [H, W] of the first frame, and the normalisation of the points that it puts on the pixels' rays."""
    tracks = tracked.tracks
    own = normalization(tracks)
    assert tracks.cameras is not None
    depth = torch.where(tracked.valid, tracks.points[0, ..., 2], torch.zeros_like(tracks.points[0, ..., 2])).float()
    reference = pointmap.from_depth(depth, tracks.cameras.intrinsics[0].float())
    return depth, DepthGuidedMotion(reference=reference, focal=own.focal.float())


def write_record(path: Path, tracked: Tracked, covered: Bool[Tensor, "T H W"], facts: Mapping[str, Any]) -> None:
    """Write one sample; the same sample gives the same bytes.

    Raises:
        ValueError: the tracks have no cameras.
        OSError: the disk is full or read-only.
    """
    tracks = tracked.tracks
    depth, normal = snapped(tracked)
    motion = normal.apply_vector((tracks.points - tracks.points[:1])[1:].float()).nan_to_num().clamp(-LARGEST, LARGEST)
    motion = motion.half() * tracked.valid[..., None]
    moved = (motion != 0).any(-1).any(0)
    assert tracks.cameras is not None
    arrays = {
        "version": np.array(VERSION),
        "shape": np.array(tracks.visible.shape),
        "depth": depth.numpy(),
        "motion": motion[:, moved].numpy(),
        "moved": _bits(moved),
        "visible": _bits(tracks.visible),
        "covered": _bits(covered),
        "rgb": (tracks.colors * 255).round().to(torch.uint8).numpy(),
        "intrinsics": tracks.cameras.intrinsics.double().numpy(),
        "cam2world": tracks.cameras.cam2world.double().numpy(),
        "timestamps": tracks.timestamps.double().numpy(),
        "facts": np.frombuffer(
            json.dumps({**facts, "scale": tracks.scale}, sort_keys=True, ensure_ascii=False).encode(), np.uint8
        ),
    }
    with atomic_file(path) as draft, draft.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def read_record(path: Path) -> Record:
    """Read one sample.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of a newer version.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            if int(stored["version"]) > VERSION:
                raise ValueError(f"{path} was written by a newer Worldline; update to read it.")
            return _record(stored)
    except FileNotFoundError:
        raise
    except (OSError, KeyError, EOFError, Exception) as error:  # zipfile has its own errors
        if isinstance(error, ValueError) and "newer" in str(error):
            raise
        raise ValueError(f"{path} is damaged and cannot be read ({error}).") from error


def _record(stored: Mapping[str, np.ndarray]) -> Record:
    frames, height, width = (int(n) for n in stored["shape"])
    facts = json.loads(stored["facts"].tobytes())
    depth, k = torch.from_numpy(stored["depth"]), torch.from_numpy(stored["intrinsics"])
    reference = pointmap.from_depth(depth, k[0].float())
    focal = torch.stack([k[0, 0, 0] / width, k[0, 1, 1] / height]).float()
    moved = _unbits(stored["moved"], (height, width))
    motion = torch.zeros(frames, height, width, 3)
    motion[1:, moved] = torch.from_numpy(stored["motion"]).float()
    points = DepthGuidedMotion(reference=reference, focal=focal).invert(motion)
    tracks = Tracks4D(
        points=points,
        visible=_unbits(stored["visible"], (frames, height, width)),
        reference=0,
        colors=torch.from_numpy(stored["rgb"]).float() / 255,
        timestamps=torch.from_numpy(stored["timestamps"]),
        cameras=Cameras(intrinsics=k, cam2world=torch.from_numpy(stored["cam2world"]), size=(height, width)),
        scale=facts["scale"],
        provenance=Provenance(system=str(facts.get("tracker", "")), source=str(facts.get("source", ""))),
    )
    covered = _unbits(stored["covered"], (frames, height, width))
    return Record(tracks=tracks, valid=depth > 0, moving=moved, covered=covered, facts=facts)


def record_error(tracked: Tracked, record: Record) -> dict[str, float]:
    """What the record loses: largest and median error across the view in pixels, and along it over the depth.

    Of points that move; sideways errors count in pixels at the depth of the point in the first frame.
    """
    _, normal = snapped(tracked)
    points = tracked.tracks.points.float()
    lost = normal.apply_vector((points - points[:1]) - (record.tracks.points - record.tracks.points[:1])).abs()
    lost, (height, width) = lost[1:, record.moving], record.valid.shape
    if not lost.numel():
        return {"largest_px": 0.0, "median_px": 0.0, "largest_depth": 0.0}
    pixels = lost[..., :2] * torch.tensor([width, height])
    return {
        "largest_px": float(pixels.max()),
        "median_px": float(pixels.median()),
        "largest_depth": float(lost[..., 2].max()),
    }


def _bits(mask: Tensor) -> np.ndarray:
    return np.packbits(mask.numpy())


def _unbits(bits: np.ndarray, shape: tuple[int, ...]) -> Bool[Tensor, "*shape"]:
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits, count=count).astype(bool)).reshape(shape)


def depth_of_first(record: Record) -> Float[Tensor, "H W"]:
    """Depth of the first frame, 0 where it sees no surface."""
    return record.tracks.points[0, ..., 2]
