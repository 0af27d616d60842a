"""A picture of what is wrong with a clip: the worst frame pair, with every tested pixel coloured by what was found."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from worldline.data.check import epipolar, physics
from worldline.data.check.compare import Label
from worldline.data.check.physics import CheckConfig, ClipCheck, Frames
from worldline.geometry import pose

COLORS = {Label.AGREES: (60, 190, 90), Label.HIDDEN: (70, 110, 230), Label.THROUGH: (230, 50, 40)}
PANEL_WIDTH = 480
LEGEND = "green agrees   blue hidden there   red looked through"
LEGENDS = {
    "images": "green moves as the image does   red not",
    "projection": "green on its own pixel   red not",
}


def draw(check: ClipCheck, frames: Frames, config: CheckConfig | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Frame t, the later frame, and frame t with the labels of its pixels; of the test with the lowest score.

    Args:
        check: what was found.
        frames: reads the clip's frames.
        config: as for the check.
    """
    config = physics.for_clip(config or CheckConfig(), frames(0, 1))
    worst = check.worst
    t, later = worst.worst if worst is not None and worst.worst is not None else (0, 0)
    first, second = frames(t, t + 1).video.frames[0], frames(later, later + 1).video.frames[0]
    labels = _labels(check, frames, config, t, later)
    panels = [_panel(first), _panel(second), _painted(first, labels)]
    score = "nothing to test" if check.score is None else f"{worst.name} {worst.score:.3f}" if worst else ""
    legend = LEGENDS.get(worst.name if worst is not None else "", LEGEND)
    captions = [f"frame {t}", f"frame {later}", legend]
    return _joined(panels, captions, f"{check.name or 'clip'}: {check.verdict}, {score}")


def _labels(check: ClipCheck, frames: Frames, config: CheckConfig, t: int, later: int) -> Tensor:
    """Labels of all pixels of frame t under the worst test."""
    everywhere = 1 << 30
    worst = check.worst
    if worst is not None and worst.name == "projection":
        return physics.labels_of_projection(frames(t, t + 1), everywhere)
    if worst is not None and worst.worst is not None and later > t:
        if worst.name == "motion":
            return physics.labels_in_motion(frames, t, later, config, everywhere)
        if worst.name == "images":
            return _image_labels(frames, t, later)
        return physics.labels_at_rest(frames, t, later, config, everywhere)
    return torch.where(frames(t, t + 1).valid[0], Label.AGREES, Label.UNTESTED).to(torch.uint8)


def _image_labels(frames: Frames, t: int, later: int) -> Tensor:
    pair = frames(t, later + 1)
    assert pair.cameras is not None
    if bool(pair.valid.any()):
        a, near = epipolar.point_motion(pair)
    else:
        a, b = epipolar.matches(*(epipolar.grey(frame) for frame in pair.video.frames))
        poses = pair.cameras.cam2world.double()
        distance = epipolar.distance_px(a, b, pair.cameras.intrinsics, pose.inverse(poses[1]) @ poses[0])
        near = distance < epipolar.NEAR_PX
    labels = torch.zeros(pair.size, dtype=torch.uint8)
    column, row = a.long().unbind(-1)
    labels[row, column] = torch.where(near, Label.AGREES, Label.THROUGH).to(torch.uint8)
    return labels


def _panel(frame: Tensor) -> Image.Image:
    rgb = frame if frame.dtype == torch.uint8 else (frame.clamp(0, 1) * 255).round().to(torch.uint8)
    image = Image.fromarray(rgb.numpy())
    return image.resize((PANEL_WIDTH, max(1, round(PANEL_WIDTH * image.height / image.width))))


def _painted(frame: Tensor, labels: Tensor) -> Image.Image:
    grey = torch.from_numpy(epipolar.grey(frame)).float()[..., None].expand(*frame.shape)
    painted = 0.5 * grey
    for label, color in COLORS.items():
        chosen = labels == label
        painted = torch.where(chosen[..., None], 0.35 * grey + 0.65 * torch.tensor(color).float(), painted)
    return _panel(painted.clamp(0, 255).to(torch.uint8))


def _joined(panels: list[Image.Image], captions: list[str], title: str) -> UInt8[np.ndarray, "H W 3"]:
    line = 16
    sheet = Image.new("RGB", (len(panels) * PANEL_WIDTH, panels[0].height + 2 * line), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    pen.text((4, 2), title, fill=(240, 240, 240))
    for column, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        sheet.paste(panel, (column * PANEL_WIDTH, line))
        pen.text((column * PANEL_WIDTH + 4, line + panel.height + 2), caption, fill=(200, 200, 200))
    return np.asarray(sheet)
