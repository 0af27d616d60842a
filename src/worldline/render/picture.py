"""One picture of a whole scene: frames, depth and motion in rows, and the camera path seen from above."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from worldline.geometry.pointmap import scene_depth
from worldline.io.atomic import atomic_file
from worldline.render.colors import depth_colors, depth_range, motion_colors, motion_scale, to_uint8
from worldline.render.from_above import draw_from_above
from worldline.scene import Scene4D

PAPER, INK = (250, 250, 248), (30, 30, 34)
GAP, LABEL_HEIGHT = 8, 20


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """How large the picture is.

    Attributes:
        columns: frames shown, evenly spaced.
        panel_width: pixels of one frame.
        map_points: points drawn from above, at most.
    """

    columns: int = 4
    panel_width: int = 240
    map_points: int = 400_000


def contact_picture(
    scene: Scene4D, truth: Scene4D | None = None, config: PictureConfig | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Picture of a reconstruction, beside its truth where that is known.

    Rows are RGB, depth (near light; colours of inverse depth, spread for prediction and truth separately because
    their scales may differ) and scene flow (hue is direction across the view, white does not move). On the right
    the points and the camera path from above; the truth's path, brought to the same scale, is drawn dashed.

    Raises:
        ValueError: the scene has no cameras.
    """
    config = config or PictureConfig()
    chosen = sorted(set(np.linspace(0, len(scene) - 1, min(config.columns, len(scene))).round().astype(int).tolist()))
    rows = [("frame " + ", ".join(map(str, chosen)), scene.select(chosen).video.rgb())]
    named = [("", scene)] if truth is None else [("", scene), ("true ", truth)]
    rows += [(f"{name}depth", _depth_row(item, chosen)) for name, item in named]
    flows = [(name, item) for name, item in named if item.scene_flow is not None]
    rows += [(_motion_label(name, item), _motion_row(item, chosen)) for name, item in flows]
    panels = [(label, [_panel(frame, config.panel_width) for frame in frames]) for label, frames in rows]
    height = sum(row[0].height + LABEL_HEIGHT for _, row in panels)
    width = len(chosen) * (config.panel_width + GAP)
    side = height - LABEL_HEIGHT
    sheet = Image.new("RGB", (width + side + 2 * GAP, height + 2 * GAP), PAPER)
    draw, top = ImageDraw.Draw(sheet), GAP
    for label, row in panels:
        draw.text((GAP, top + 2), label, INK, _font(13))
        for column, panel in enumerate(row):
            sheet.paste(panel, (GAP + column * (config.panel_width + GAP), top + LABEL_HEIGHT))
        top += row[0].height + LABEL_HEIGHT
    above = draw_from_above(scene, truth, side, config.map_points)
    sheet.paste(above, (width + GAP, GAP + LABEL_HEIGHT))
    note = "; true path grey" if truth is not None and truth.cameras is not None else ""
    draw.text((width + GAP, GAP + 2), f"from above; cameras: first blue, last red{note}", INK, _font(13))
    return np.asarray(sheet).copy()


def save_png(path: str | Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write a picture; the file appears whole or not at all.

    Raises:
        OSError: it cannot be written (disk full, read-only).
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    with atomic_file(Path(path)) as draft:
        draft.write_bytes(buffer.getvalue())


# -------------------------------------------------------------------------------------------------------------- rows


def _depth_row(scene: Scene4D, chosen: list[int]) -> Tensor:
    part = scene.select(chosen)
    depth = scene_depth(part).float()
    return depth_colors(depth, part.valid, depth_range(depth, part.valid))


def _motion_row(scene: Scene4D, chosen: list[int]) -> Tensor:
    part = scene.select([min(index, max(0, len(scene) - 2)) for index in chosen])  # the last frame has no flow
    assert part.scene_flow is not None and part.flow_valid is not None and part.cameras is not None
    world2cam = part.cameras.cam2world[:, :3, :3].mT.to(part.scene_flow)
    flow = torch.einsum("tij,thwj->thwi", world2cam, part.scene_flow)
    depth = scene_depth(part)
    floor = 0.002 * float(depth[part.valid].median()) if part.valid.any() else 1.0
    return motion_colors(flow, part.flow_valid, motion_scale(flow, part.flow_valid, floor))


def _motion_label(name: str, scene: Scene4D) -> str:
    doubt = " (does not beat its trivial predictor)" if "scene_flow" in scene.provenance.unreliable else ""
    return f"{name}motion: colour is direction, white is still{doubt}"


def _panel(frame: Tensor, width: int) -> Image.Image:
    image = Image.fromarray(to_uint8(frame.float()).cpu().numpy())
    height = max(1, round(width * image.height / image.width))
    return image.resize((width, height), Image.Resampling.NEAREST if image.width < width else Image.Resampling.BOX)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
