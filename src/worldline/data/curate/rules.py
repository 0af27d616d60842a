"""The judge without a language model: counts regions that move, and says so in a sentence from a template.

It knows nothing about what things are. Its captions name colours, places and directions, and every sample records that
they come from rules.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.data.curate.config import RuleConfig
from worldline.data.curate.language import Judgement
from worldline.data.curate.tracked import Tracked
from worldline.geometry.pose import rotation_angle_deg

SOURCE = "rules"
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
NAMED = 3
"""Regions that the sentence describes."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A connected part of the first frame that moves.

    Attributes:
        area: share of the picture.
        persistence: share of the clip that its points are seen, on average.
        place: "on the left", "in the middle" or "on the right".
        colour: a common name.
        heading: where it goes as the first camera sees it, "" if it returns or only turns.
    """

    area: float
    persistence: float
    place: str
    colour: str
    heading: str


def judge(tracked: Tracked, config: RuleConfig | None = None) -> Judgement:
    """Whether the clip shows a few separate things that move and stay to be seen; largest first in the caption."""
    config = config or RuleConfig()
    every = regions(tracked, config)
    lasting = [region for region in every if region.persistence >= config.persistence]
    covered = sum(region.area for region in every)
    if not every:
        countable, reason = False, "nothing moves but the camera" if _camera_moves(tracked) else "nothing moves"
    elif covered > config.largest:
        countable, reason = False, f"{covered:.0%} of the picture moves, so that no thing stands out"
    elif not lasting:
        countable, reason = False, "what moves is lost from sight at once"
    elif len(lasting) > config.most:
        countable, reason = False, f"{len(lasting)} regions move, too many to count"
    else:
        countable, reason = True, f"{len(lasting)} separate {'regions move' if len(lasting) > 1 else 'region moves'}"
    return Judgement(
        caption=_sentence(lasting, _camera_moves(tracked), config.most),
        countable=countable,
        reason=reason,
        entities=tuple(f"something {region.colour} {region.place}" for region in lasting[: config.most]),
        source=SOURCE,
    )


def regions(tracked: Tracked, config: RuleConfig) -> list[Region]:
    """Connected moving regions of the first frame that are large enough, largest first."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(tracked.moving.numpy().astype(np.uint8), connectivity=8)
    found = []
    for label in range(1, count):
        area = float(stats[label, cv2.CC_STAT_AREA]) / labels.size
        if area >= config.smallest:
            found.append(_describe(tracked, torch.from_numpy(labels == label), area))
    return sorted(found, key=lambda region: -region.area)


def _describe(tracked: Tracked, inside: Bool[Tensor, "H W"], area: float) -> Region:
    tracks = tracked.tracks
    column = float(inside.nonzero()[:, 1].float().mean()) / inside.shape[1]
    return Region(
        area=area,
        persistence=float(tracks.visible[:, inside].float().mean()),
        place="on the left" if column < 1 / 3 else "on the right" if column > 2 / 3 else "in the middle",
        colour=colour_name(tracks.colors[inside].median(0).values),
        heading=_heading(tracks.points[:, inside]),
    )


def _heading(points: Float[Tensor, "T N 3"]) -> str:
    """Main direction of the median path, if the end is far from the start compared with the way between."""
    path = points.median(1).values
    step, way = path[-1] - path[0], (path[1:] - path[:-1]).norm(dim=-1).sum()
    if float(step.norm()) < 0.5 * float(way) or float(step.norm()) < 0.02 * float(path[0, 2].abs()):
        return ""
    axis = int(step.abs().argmax())
    return (("to the left", "to the right"), ("up", "down"), ("towards the camera", "away"))[axis][int(step[axis] > 0)]


def colour_name(rgb: Float[Tensor, "3"]) -> str:
    """A common name of a colour."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(v) for v in rgb))
    if value < 0.2:
        return "black"
    if saturation < 0.2:
        return "white" if value > 0.8 else "grey"
    names = (
        (15, "red"),
        (40, "brown" if value < 0.6 else "orange"),
        (70, "yellow"),
        (165, "green"),
        (200, "teal"),
        (260, "blue"),
        (320, "purple"),
        (345, "pink"),
        (361, "red"),
    )
    return next(name for limit, name in names if hue * 360 < limit)


def _camera_moves(tracked: Tracked) -> bool:
    """By a degree, or by a hundredth of the median depth."""
    cameras, points = tracked.tracks.cameras, tracked.tracks.points[0]
    if cameras is None:
        return False
    poses = cameras.cam2world
    turn = rotation_angle_deg(poses[:1, :3, :3].expand(len(poses), 3, 3), poses[:, :3, :3]).max()
    depth = points[..., 2][tracked.valid].median() if bool(tracked.valid.any()) else points.new_ones(())
    shift = (poses[:, :3, 3] - poses[:1, :3, 3]).norm(dim=-1).max()
    return float(turn) > 1.0 or float(shift) > 0.01 * float(depth)


def _sentence(found: list[Region], camera: bool, most: int) -> str:
    end = "The camera moves." if camera else "The camera stands still."
    if not found:
        return f"Nothing moves by itself. {end}"
    count = NUMBERS[len(found)] if len(found) < len(NUMBERS) and len(found) <= most else "Many"
    acts = [
        f"something {region.colour} {region.place} moves{f' {region.heading}' if region.heading else ' about'}"
        for region in found[:NAMED]
    ]
    return f"{count} thing{'s move' if len(found) > 1 else ' moves'}: {', '.join(acts)}. {end}"
