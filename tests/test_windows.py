"""Window plans cover every frame, overlap as asked, and equal the golden list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldline import windows


@given(frames=st.integers(1, 300), window=st.integers(1, 40), data=st.data())
@settings(deadline=None, max_examples=100)
def test_plan_covers_and_overlaps(frames: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    plan = windows.plan(frames, window, overlap)
    assert {frame for part in plan for frame in part} == set(range(frames))
    assert plan[0].start == 0 and plan[-1].stop == frames
    assert all(len(part) == min(window, frames) for part in plan)
    for one, two in zip(plan, plan[1:], strict=False):
        assert one.start < two.start
        assert len(set(one) & set(two)) >= overlap


def test_only_the_last_window_overlaps_more() -> None:
    assert [w.start for w in windows.plan(77, 25, 5)] == [0, 20, 40, 52]


@pytest.mark.shared
def test_plan_stride_equals_golden(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "geo4d" / "windows.json").read_text())
    for name, lists in golden["lists"].items():
        frames, stride = (int(part[1:]) for part in name.split("_"))
        assert [w.start for w in windows.plan_stride(frames, golden["window_length"], stride)] == lists["starts"]


@pytest.mark.parametrize("arguments", [(0, 4, 1), (5, 4, 4), (5, 4, -1), (5, 0, 0)])
def test_impossible_plans_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"\w+ .*\."):
        windows.plan(*arguments)
