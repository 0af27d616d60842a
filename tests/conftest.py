"""Where shared material is, one thread per test process, and seeds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    torch.set_num_threads(1)


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; set {variable} to run this test")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of golden numbers (WORLDLINE_GOLDEN, default ../shared/golden)."""
    return _folder("WORLDLINE_GOLDEN", ROOT.parent / "shared" / "golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real sequences (WORLDLINE_SHARED_DATA, default ../shared/data)."""
    return _folder("WORLDLINE_SHARED_DATA", ROOT.parent / "shared" / "data")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
