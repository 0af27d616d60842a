"""Flows between frames as parallax weighs them: the way back, and what a flow says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.align.prior_files import PriorFiles
from worldline.api import reconstruction
from worldline.flow.dis import SureFlow
from worldline.systems.parallax.flow import FlowConfig, both_ways, compute_flows, flow_of
from worldline.systems.registry import card


class Doubtful:
    """Nothing moves; the right half of the picture is off by `error_px`, and it says so."""

    def __init__(self, error_px: float) -> None:
        self.error_px = error_px
        self.calls = 0

    def __call__(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        self.calls += 1
        assert source.shape[:2] == (24, 32)  # a flow that knows its error gets pictures as they are
        return np.zeros((24, 32, 2), np.float32)

    def with_error(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        error = np.zeros((24, 32), np.float32)
        error[:, 16:] = self.error_px
        return self(source, target), error


def test_what_a_flow_doubts_counts_less() -> None:
    picture = np.zeros((24, 32, 3), np.uint8)
    (_, ahead), (_, back) = both_ways(Doubtful(2.0), picture, picture, FlowConfig(error_px=1.0))
    for weight in (ahead, back):
        np.testing.assert_allclose(weight[:, :16], 1)
        np.testing.assert_allclose(weight[:, 16:], 0.2, rtol=1e-5)  # 1 / (1 + 2^2)


def test_flow_that_knows_nothing_of_itself_has_the_weight_of_the_way_back() -> None:
    picture = np.zeros((24, 32, 3), np.uint8)
    config = FlowConfig(noise_px=0.5)
    (_, ahead), _ = both_ways(lambda a, b: np.full((24, 32, 2), 0.2, np.float32), picture, picture, config)
    np.testing.assert_allclose(ahead[:20, :28], np.exp(-0.32 / (2 * (0.25 + 0.0025 * 0.08))), rtol=1e-4)


def test_doubt_reaches_the_stored_pairs() -> None:
    flow = Doubtful(3.0)
    pairs = compute_flows([np.zeros((24, 32, 3), np.uint8)] * 3, flow, FlowConfig(gaps=(1, 2)))
    assert flow.calls == 6
    weight = pairs.read(0, 1)[1]
    assert (weight[:, :16] == 1).all() and np.allclose(weight[:, 16:], 0.1, atol=0.005)


def test_learned_flow_asked_for_reaches_parallax_and_windows_get_it_with_their_priors() -> None:
    asked = PriorFiles(zoom=True, flow="learned")
    assert reconstruction._flow_of(asked, card("parallax")) == (PriorFiles(zoom=True), "learned")
    assert reconstruction._flow_of(asked, card("motioncrafter-mini")) == (asked, "dis")
    assert reconstruction._flow_of(None, card("parallax")) == (None, "dis")
    assert isinstance(flow_of("learned", FlowConfig()), SureFlow)
    assert not isinstance(flow_of("dis", FlowConfig()), SureFlow)
    with pytest.raises(ValueError, match="dis or learned"):
        flow_of("raft", FlowConfig())
