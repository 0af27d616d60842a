"""A contact sheet of one clip: what was filmed, the points moved to each time, their motion, and what is seen."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldline.data.curate.gates import normalization
from worldline.data.curate.release import Rendering
from worldline.data.curate.tracked import Tracked, resized
from worldline.io.atomic import atomic_file
from worldline.scene import Video

COLUMNS = 5
WIDTH = 224
HOLE = (255, 0, 255)
UNSEEN = 0.35
"""Brightness of points that are hidden at a time."""


def contact_sheet(
    video: Video, title: str, tracked: Tracked | None = None, rendering: Rendering | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Rows: the clip; the moved points from the source camera, holes magenta; motion; visibility.

    Args:
        video: the clip.
        title: one line above.
        tracked: None: only the first row.
        rendering: None: no second row.
    """
    chosen = torch.linspace(0, len(video) - 1, min(COLUMNS, len(video))).round().long().tolist()
    size = (max(1, round(WIDTH * video.size[0] / video.size[1])), WIDTH)
    rows = [("clip", [_bytes(f) for f in resized(video.frames[chosen], size)])]
    if rendering is not None:
        painted = torch.where(rendering.covered[chosen][..., None], rendering.frames[chosen], torch.tensor(HOLE).byte())
        rows.append(("first frame's points, moved (magenta: hole)", _fit(painted, size)))
    if tracked is not None:
        rows.append(("their motion since the first frame (hue: direction)", _fit(motion_colors(tracked)[chosen], size)))
        dim = torch.where(tracked.tracks.visible[chosen], 1.0, UNSEEN)[..., None]
        seen = (tracked.tracks.colors * dim * 255).round().byte()
        rows.append(("seen (bright) or hidden (dark), on the first frame", _fit(seen, size)))
    body = [_line(title, size[1] * len(chosen))]
    for name, cells in rows:
        body += [_line(name, size[1] * len(chosen)), np.concatenate(cells, 1)]
    return np.concatenate(body, 0)


def motion_colors(tracked: Tracked) -> UInt8[Tensor, "T H W 3"]:
    """Normalised displacement as colours: hue is the direction, brightness the length against the clip's longest."""
    moved = normalization(tracked.tracks).apply(tracked.tracks.points) * tracked.valid[..., None]
    length = moved.norm(dim=-1)
    longest = float(length.flatten()[:: max(1, length.numel() // 1_000_000)].quantile(0.999))
    hue = (torch.atan2(moved[..., 1], moved[..., 0]) / (2 * torch.pi)) % 1
    table = torch.tensor([colorsys.hsv_to_rgb(i / 256, 0.9, 1.0) for i in range(256)])
    strength = (length / max(longest, 1e-6)).clamp(0, 1).sqrt()[..., None]
    return (table[(hue.nan_to_num() * 255).long()] * strength.nan_to_num() * 255).byte()


def save_sheet(path: Path, sheet: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write a PNG.

    Raises:
        OSError: the disk is full or read-only.
    """
    import cv2

    good, data = cv2.imencode(".png", sheet[..., ::-1])
    assert good
    with atomic_file(path) as draft:
        draft.write_bytes(data.tobytes())


def _fit(frames: UInt8[Tensor, "T H W 3"], size: tuple[int, int]) -> list[np.ndarray]:
    return [_bytes(f) for f in resized(frames, size)]


def _bytes(frame: Float[Tensor, "H W 3"]) -> np.ndarray:
    return (frame * 255).round().byte().numpy()


def _line(text: str, width: int) -> np.ndarray:
    import cv2

    band = np.full((18, width, 3), 255, np.uint8)
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(band, plain, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return band
