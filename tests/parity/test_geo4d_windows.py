"""The windows Geo4D's settings make of a video, against the published lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldline import windows
from worldline.systems.geo4d.config import Geo4DConfig

pytestmark = pytest.mark.shared


def test_geo4d_windows(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "geo4d" / "windows.json").read_text())
    config = Geo4DConfig()
    assert config.window == golden["window_length"]
    for name, lists in golden["lists"].items():
        count, stride = (int(part[1:]) for part in name.split("_"))
        plan = windows.plan_stride(count, config.window, stride)
        assert [window.start for window in plan] == lists["starts"]
        assert all(len(window) == config.window for window in plan)
        if stride == config.stride:
            twice = lists["upstream_starts"]
            assert sorted(set(twice)) == lists["starts"]  # the published list names the last window once too often
