"""Folders of golden numbers (WORLDLINE_GOLDEN)."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_numbers import Golden


@pytest.fixture(scope="session")
def motioncrafter_golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir / "motioncrafter")
