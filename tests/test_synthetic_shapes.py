"""Rays against primitives and terrain: a hit lies on the surface, and nothing is met before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from worldline.data.synthetic import shapes, terrain
from worldline.data.synthetic.shapes import FAR, HIT, SHADOW

RAYS = 4000
SAMPLES = 400


def _solid(kind: str, p: tuple[Tensor, Tensor, Tensor], taper: float) -> Tensor:
    """Signed excess of a point over the solid: negative inside, zero on its surface."""
    x, y, z = p
    if kind == "ellipsoid":
        return (x * x + y * y + z * z).sqrt() - 1
    if kind == "box":
        return torch.maximum(torch.maximum(x.abs(), y.abs()), z.abs()) - 1
    radius = (1 + taper) / 2 + (1 - taper) / 2 * y
    return torch.maximum((x * x + z * z).sqrt() - radius, y.abs() - 1)


def _rays(distance: float) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Rays from a sphere of radius `distance` towards the neighbourhood of the origin."""
    g = torch.Generator().manual_seed(1)
    origin = torch.nn.functional.normalize(torch.randn(RAYS, 3, generator=g, dtype=torch.float64), dim=-1) * distance
    target = torch.randn(RAYS, 3, generator=g, dtype=torch.float64) * 0.8
    along = (target - origin) / distance
    return origin.float().unbind(-1), along.float().unbind(-1)


@pytest.mark.parametrize("distance", [3.0, 80.0])
@pytest.mark.parametrize(
    ("kind", "taper"), [("ellipsoid", 1.0), ("box", 1.0), ("cone", 1.0), ("cone", 0.4), ("cone", 0.0)]
)
def test_the_hit_is_the_first_point_of_the_solid(kind: str, taper: float, distance: float) -> None:
    o, d = _rays(distance)
    t = HIT[kind](o, d, torch.tensor(taper))
    hit = t < FAR
    assert 0.1 < float(hit.float().mean()) < 0.95
    at = tuple(a + t * b for a, b in zip(o, d, strict=True))
    assert float(_solid(kind, at, taper)[hit].abs().max()) < 2e-6 * distance + 1e-4

    # Nothing of the solid lies before the hit (before any point of the ray, where there is none).
    last = torch.where(hit, t, distance + 3.0)
    share = torch.linspace(0, 1, SAMPLES + 1)[:-1, None]
    s = last - 6.0 * (1 - share)  # the last six units, longer than any way through the solid
    s = s.clamp_min(0)
    before = tuple(a + s * b for a, b in zip(o, d, strict=True))
    inside = _solid(kind, before, taper) < -2e-3
    assert not bool(inside.any())


@pytest.mark.parametrize(("kind", "taper"), [("ellipsoid", 1.0), ("box", 1.0), ("cone", 0.4)])
def test_a_shadow_falls_where_the_segment_to_the_light_meets_the_solid(kind: str, taper: float) -> None:
    o, d = _rays(3.0)
    light = tuple(a + 6.0 * b for a, b in zip(o, d, strict=True))
    blocked = SHADOW[kind](o, light, torch.tensor(taper))
    s = torch.linspace(0, 1, 1500)[:, None]
    depth = _solid(kind, tuple(a + s * (b - a) for a, b in zip(o, light, strict=True)), taper).min(0).values
    clear_cut = depth.abs() > 5e-3
    assert torch.equal(blocked[clear_cut], depth[clear_cut] < 0)


def test_room_exit_is_on_the_walls_and_names_floor_and_ceiling() -> None:
    g = torch.Generator().manual_seed(2)
    o = (torch.rand(RAYS, 3, generator=g) * 1.8 - 0.9).unbind(-1)
    d = torch.randn(RAYS, 3, generator=g).unbind(-1)
    t, floor, ceiling = shapes.room(o, d)
    p = torch.stack([a + t * b for a, b in zip(o, d, strict=True)], -1)
    torch.testing.assert_close(p.abs().amax(-1), torch.ones(RAYS), atol=2e-5, rtol=0)
    assert bool((p[floor][:, 1] > 0.999).all()) and bool((p[ceiling][:, 1] < -0.999).all())
    assert bool((p[~floor & ~ceiling][:, [0, 2]].abs().amax(-1) > 0.999).all())


def test_terrain_is_met_at_its_first_crossing() -> None:
    rng = np.random.default_rng(3)
    wave = [
        [a, 2 * np.pi / length, rng.normal() * 0.3, rng.uniform(0, 6)] for a, length in ((2, 30), (0.8, 14), (0.2, 5))
    ]
    waves = torch.tensor(np.array(wave).T, dtype=torch.float32)[:, :, None, None, None, None]
    far = torch.full((1, 1, 1, 1), 60.0)
    shape = (1, 1, 30, 40)
    yaw = torch.linspace(-0.8, 0.8, 40).expand(shape)
    d = (yaw, torch.linspace(-0.3, 0.6, 30)[:, None].expand(shape), torch.ones(shape))
    ground = float(terrain.height(np.array(wave), np.zeros(1), np.zeros(1))[0])
    o = (torch.zeros(1), torch.full((1,), ground - 1.5), torch.zeros(1))
    start, settled = terrain.march(o, d, waves, far, torch.full(shape, 0.02), terrain.STEPS)
    t = terrain.hit(o, d, waves, far, start, settled)

    steps = torch.arange(0.02, 60, 0.02, dtype=torch.float64).numpy()
    x, y, z = (np.asarray(a)[..., None] + np.asarray(b.double())[..., None] * steps for a, b in zip(o, d, strict=True))
    below = y > terrain.height(np.array(wave), x, z) + 1e-4
    first = np.where(below.any(-1), steps[below.argmax(-1)], np.inf)
    met = t.numpy() < FAR
    assert 0.3 < met.mean() < 0.95
    crossing = np.isfinite(first)
    assert met[crossing].all()  # no hill is missed
    assert np.abs(t.numpy()[crossing] - first[crossing]).max() < 0.1  # grazing rays within a few samples
    assert np.median(np.abs(t.numpy()[crossing] - first[crossing])) < 0.02
    assert (met & ~crossing).mean() < 0.005  # touches without crossing
