"""The ray-caster: closest hits, shadows and what a hit is made of, for [B, T, H, W] pixels at once.

One small step per primitive, compiled once per kind and shape: slots may be any number, and absent kinds cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.data.synthetic import pack, shapes, terrain
from worldline.data.synthetic.pack import Tables
from worldline.data.synthetic.shading import Surface, shade
from worldline.data.synthetic.shapes import FAR, HIT, KINDS, NEAR, SHADOW


def image_coordinates(tables: Tables, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Normalised image coordinates x [B, T, 1, W] and y [B, T, H, 1] of the pixel centres."""
    frame = tables.frame
    x = torch.arange(size[1], device=frame.device, dtype=frame.dtype)
    y = torch.arange(size[0], device=frame.device, dtype=frame.dtype)
    x = (x - frame[pack.CENTRE_X]) / frame[pack.FOCAL]
    return x, (y[:, None] - frame[pack.CENTRE_Y]) / frame[pack.FOCAL]


def background_hit(
    x: Tensor, y: Tensor, to_object: Tensor, waves: Tensor, far: Tensor, background: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Depth and slot (0 floor, 1 walls, 2 ceiling) of the background, FAR for the sky; and whether that is final."""
    d = shapes.direction(x, y, to_object)
    o = (to_object[3], to_object[7], to_object[11])
    if background == "room":
        depth, floor, ceiling = shapes.room(o, d)
        slot = torch.where(floor, 0, torch.where(ceiling, 2, 1)).to(torch.int32)
        return depth, slot, depth < FAR
    if background == "ground":
        depth = shapes.ground(o, d, far)
        settled = depth <= FAR
    else:
        depth, settled = terrain.march(o, d, waves, far, torch.full_like(d[0], NEAR), terrain.STEPS)
    return depth, torch.zeros_like(depth, dtype=torch.int32), settled


def _background(steps: Steps, tables: Tables, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    to_object = tables.to_object[0]
    depth, slot, settled = steps.background(x, y, to_object, tables.waves, tables.far, tables.background)
    if tables.background == "terrain":  # the few rays that graze hills march on, gathered
        origin = (to_object[3], to_object[7], to_object[11])
        directions = shapes.direction(x, y, to_object)
        depth = terrain.hit(origin, directions, tables.waves, tables.far, depth, settled)
    return depth, slot


def _nearer(kind: str) -> Callable[..., tuple[Tensor, Tensor]]:
    hit = HIT[kind]

    def nearer(
        x: Tensor, y: Tensor, to_object: Tensor, taper: Tensor, number: Tensor, depth: Tensor, slot: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Depth and slot after one more primitive."""
        d = shapes.direction(x, y, to_object)
        t = hit((to_object[3], to_object[7], to_object[11]), d, taper)
        closer = t < depth
        return torch.where(closer, t, depth), torch.where(closer, number, slot)

    return nearer


def _shaded(kind: str) -> Callable[..., Tensor]:
    blocks = SHADOW[kind]

    def shaded(
        x: Tensor,
        y: Tensor,
        depth: Tensor,
        slot: Tensor,
        to_object: Tensor,
        light: Tensor,
        taper: Tensor,
        number: Tensor,
        lit: Tensor,
    ) -> Tensor:
        """Light that is left after one more primitive; convex bodies do not shade the side that faces the light."""
        p = shapes.apply(to_object, (x * depth, y * depth, depth))
        return lit & ~(blocks(p, (light[0], light[1], light[2]), taper) & (slot != number))

    return shaded


@dataclass(frozen=True)
class Steps:
    """The stages of the ray-caster, plain or compiled."""

    background: Callable[..., tuple[Tensor, Tensor, Tensor]]
    nearer: dict[str, Callable[..., tuple[Tensor, Tensor]]]
    shaded: dict[str, Callable[..., Tensor]]
    shade: Callable[..., Surface]
    compiled: bool

    @staticmethod
    def plain() -> Steps:
        """Eager steps."""
        return Steps(background_hit, {k: _nearer(k) for k in KINDS}, {k: _shaded(k) for k in KINDS}, shade, False)

    @staticmethod
    def fused() -> Steps:
        """Steps compiled by torch.compile, once per shape."""
        steps = Steps.plain()
        compile_ = lambda function: torch.compile(function, dynamic=False)  # noqa: E731
        return Steps(
            compile_(steps.background),
            {k: compile_(f) for k, f in steps.nearer.items()},
            {k: compile_(f) for k, f in steps.shaded.items()},
            compile_(steps.shade),
            True,
        )


def slot_kinds(tables: Tables) -> list[tuple[int, str]]:
    """(slot, kind) of the primitives."""
    kinds = [kind for kind, count in zip(KINDS, tables.counts, strict=True) for _ in range(count)]
    return [(pack.BACKGROUND_SLOTS + k, kind) for k, kind in enumerate(kinds)]


def closest_hit(steps: Steps, tables: Tables, x: Tensor, y: Tensor, *, cull: bool) -> tuple[Tensor, Tensor]:
    """z-depth and slot of what each ray meets first; FAR for the sky.

    Args:
        steps: plain or compiled.
        tables: the scenes.
        x: [B, T, 1 or H, W] normalised image coordinates.
        y: [B, T, H, 1 or W].
        cull: skip the pixels outside a primitive's bounding rectangle (regular pixel grids of one scene only).
    """
    depth, slot = _background(steps, tables, x, y)
    numbers = torch.arange(len(tables.to_object), dtype=torch.int32, device=depth.device)
    for k, kind in slot_kinds(tables):
        arguments = (tables.to_object[k], tables.taper[k], numbers[k])
        if not cull:
            depth, slot = steps.nearer[kind](x, y, *arguments, depth, slot)
            continue
        region = tables.regions[k]
        top, left = region[:, 0].min(), region[:, 2].min()
        bottom, right = region[:, 1].max(), region[:, 3].max()
        if top >= bottom or left >= right:
            continue
        window = (slice(None), slice(None), slice(top, bottom), slice(left, right))
        seen = steps.nearer[kind](x[..., left:right], y[..., top:bottom, :], *arguments, depth[window], slot[window])
        depth[window], slot[window] = seen
    return depth, slot


def light_reaches(steps: Steps, tables: Tables, x: Tensor, y: Tensor, depth: Tensor, slot: Tensor) -> Tensor:
    """Whether nothing stands between each hit and the light."""
    lit = depth < FAR
    numbers = torch.arange(len(tables.to_object), dtype=torch.int32, device=depth.device)
    for k, kind in slot_kinds(tables):
        place = (tables.to_object[k], tables.light[k], tables.taper[k], numbers[k])
        lit = steps.shaded[kind](x, y, depth, slot, *place, lit)
    return lit


def cast(steps: Steps, tables: Tables, size: tuple[int, int], *, shadows: bool) -> Surface:
    """Render frames: what each pixel sees, and its colour."""
    x, y = image_coordinates(tables, size)
    single = tables.frame.shape[1] == 1
    depth, slot = closest_hit(steps, tables, x, y, cull=single and not steps.compiled)
    lit = light_reaches(steps, tables, x, y, depth, slot) if shadows else depth < FAR
    return steps.shade(
        x, y, depth, slot, lit, tables.timed, tables.fixed, tables.frame, tables.scene, tables.waves, tables.background
    )
