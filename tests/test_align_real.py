"""Real depth, hidden cameras: sequences with measured or rendered depth give their cameras back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align_real import hololens, run, tartanair

pytestmark = pytest.mark.shared
LOADERS = {"tartanair": tartanair, "hololens": hololens}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", LOADERS)
def test_hidden_cameras_come_back(shared_data: Path, name: str) -> None:
    sequence = LOADERS[name](shared_data)
    for intrinsics in ("unknown", "known"):
        found = run(sequence, intrinsics)
        assert found["centre_pct"] < 0.5 and found["turn_deg"] < 0.2, (intrinsics, found)
        assert abs(found["focal_err_pct"]) < 1
        assert not found["noticed"]


@pytest.mark.parametrize("name", LOADERS)
def test_wrong_intrinsics_are_noticed(shared_data: Path, name: str) -> None:
    assert run(LOADERS[name](shared_data), "wrong")["noticed"]
