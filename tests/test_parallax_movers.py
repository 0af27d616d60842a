"""Moving things that are easily missed or misjudged: slow ones, and any seen through a zooming lens."""

from __future__ import annotations

import numpy as np

from parallax_worlds import camera_state, frames_of, true_r, world
from worldline.systems.parallax.mask import MaskConfig, motion_score
from worldline.systems.parallax.motion import growth
from worldline.systems.parallax.representation import FlowPairs, encode_flow


def test_a_slow_mover_shows_at_the_long_gaps_although_the_short_ones_call_it_still() -> None:
    """A third of a pixel per frame is noise between neighbours and three pixels over eight frames."""
    scene = world(
        frames=9, move=(0.0, 0.02, 0.0), turn_deg=(0, 0, 0), mover=(45.0, 30.0, 12.0), mover_step=(0.012, 0.0, 0.0)
    )
    gray, state, t = frames_of(scene), camera_state(scene), 0
    y, x = np.mgrid[: scene.size[0], : scene.size[1]]
    moves = scene.moves(t, np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)).reshape(scene.size)
    r = true_r(scene, t) / np.where(moves, 0.7, 1).astype(np.float32)
    score = {
        offsets: motion_score(gray, scene.pairs(offsets), state, t, r, MaskConfig()) for offsets in ((1,), (1, 2, 4, 8))
    }
    short, every = (float(np.median(score[offsets][moves])) for offsets in score)
    still = float(np.quantile(score[(1, 2, 4, 8)][~moves], 0.9))
    assert short < 0.15 and every > 3 * short and every > 0.3
    assert still < 0.1


def test_a_zoom_brings_nothing_closer() -> None:
    """All image motion comes from the focal length: with it the region stays where it is, without it approaches."""
    height, width, factor, frames = 40, 60, 1.03, 5
    y, x = np.mgrid[:height, :width].astype(np.float64)
    centred = np.stack([x - (width - 1) / 2, y - (height - 1) / 2], -1)
    offsets = (1, -1, 2, -2)
    flow = np.zeros((frames, len(offsets), height, width, 2), np.int16)
    weight = np.zeros((frames, len(offsets), height, width), np.uint8)
    for t in range(frames):
        for k, offset in enumerate(offsets):
            if 0 <= t + offset < frames:
                flow[t, k], weight[t, k] = encode_flow((factor**offset - 1) * centred, np.ones((height, width)))
    pairs = FlowPairs(offsets=offsets, flow=flow, weight=weight)
    moving = np.zeros((frames, height, width), bool)
    moving[:, 10:30, 15:45] = True
    r, usual = np.full((frames, height, width), 0.5, np.float32), np.zeros((height, width), np.float32)
    focal = 80 * factor ** np.arange(frames)
    zoomed, fooled = growth(r, moving, pairs, 2, usual, focal), growth(r, moving, pairs, 2, usual)
    assert np.abs(zoomed[moving[2]]).max() < 0.001
    assert fooled[moving[2]].min() > 0.003
