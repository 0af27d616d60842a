"""Depth of frames from overlapping windows: truth in, truth out, whatever each window's own world and unit are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from worldline.align.observation import Observation
from worldline.align.window_depth import common_focal, frame_depths
from worldline.geometry.camera import intrinsics_from_focal
from worldline.geometry.pointmap import from_depth, to_world
from worldline.geometry.pose import se3_exp, so3_exp
from worldline.io.arena import Arena

SIZE, FRAMES, FOCAL = (36, 48), 9, 44.0


def truth() -> tuple[torch.Tensor, torch.Tensor]:
    """Depth [T, H, W] of a relief, and cam2world."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE[0]), torch.linspace(-1, 1, SIZE[1]), indexing="ij")
    depth = torch.stack([3 + 0.5 * torch.sin(3 * x + 0.1 * t) + 0.4 * y * x - 0.05 * t for t in range(FRAMES)])
    twist = torch.linspace(0, 1, FRAMES)[:, None] * torch.tensor([0.4, -0.1, 0.3, 0.05, -0.2, 0.02])
    return depth, se3_exp(twist.double()).float()


def windows(noise: float = 0.0, blind: int | None = None) -> Iterator[Observation]:
    """Windows of 3 frames, each in a world and unit of its own; `blind`: a frame about which nothing is said."""
    generator = torch.Generator().manual_seed(0)
    depth, poses = truth()
    points = to_world(from_depth(depth, intrinsics_from_focal(FOCAL, SIZE).expand(FRAMES, 3, 3)), poses)
    for k, start in enumerate(range(0, FRAMES - 2, 2)):
        frames = tuple(range(start, start + 3))
        unit, turn = 0.3 + 0.4 * k, so3_exp(torch.randn(3, generator=generator))
        own = unit * (points[list(frames)] + noise * torch.randn(points[:3].shape, generator=generator)) @ turn.mT + k
        confidence = torch.ones(3, *SIZE)
        for n, t in enumerate(frames):
            confidence[n] *= t != blind
        yield Observation(frames=frames, points=own, confidence=confidence)


def test_exact_windows_give_the_depth_of_all_frames_at_one_scale() -> None:
    depth, _ = truth()
    found = frame_depths(windows(), FRAMES, Arena(1 << 20))
    ratio = found / depth / (found / depth).median()
    assert float((ratio - 1).abs().max()) < 0.03  # the focal length is searched in steps of 10 %
    assert float((ratio.flatten(1).median(1).values - 1).abs().max()) < 1e-3  # windows differ by factors


def test_noisy_windows_give_nearly_it_and_frames_without_a_word_are_unknown() -> None:
    depth, _ = truth()
    found = frame_depths(windows(noise=0.02, blind=1), FRAMES, Arena(0))
    assert bool(found[1].isnan().all())
    ratio = (found / depth)[[0, *range(2, FRAMES)]]
    assert float((ratio / ratio.median() - 1).abs().median()) < 0.03


def test_the_focal_length_is_that_of_the_points() -> None:
    assert common_focal(list(windows())) == pytest.approx(FOCAL, rel=0.06)


def test_windows_are_asked_for_once_and_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="no windows"):
        frame_depths(iter(()), 3, Arena(0))
