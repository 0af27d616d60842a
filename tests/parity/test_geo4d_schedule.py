"""Geo4D's noise schedule and sampler against the published ones."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from worldline.diffusion import ddim

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def folder(golden_dir: Path) -> Path:
    return golden_dir / "geo4d"


@pytest.fixture(scope="module")
def golden(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "ddim.safetensors")


def given(folder: Path, name: str) -> Tensor:
    salt = json.loads((folder / "manifest.json").read_text())["salt"]
    generator = torch.Generator().manual_seed(zlib.crc32((salt + name).encode()))
    return torch.randn((2, 16, 4, 3, 5), generator=generator)


def test_geo4d_schedule_tables(golden: dict[str, Tensor]) -> None:
    schedule = ddim.zero_snr_schedule()
    torch.testing.assert_close(schedule.alphas_cumprod, golden["full.alphas_cumprod"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(schedule.scale, golden["full.scale_arr"], rtol=1e-6, atol=0)
    assert float(schedule.alphas_cumprod[-1]) == 0


@pytest.mark.parametrize("steps", [5, 10, 25])
def test_geo4d_sampler_tables(golden: dict[str, Tensor], steps: int) -> None:
    table = ddim.zero_snr_schedule().steps(steps)
    assert torch.equal(table.timesteps, golden[f"S{steps}.timesteps"])
    for name in ("alphas", "alphas_prev", "scale", "scale_prev"):
        torch.testing.assert_close(getattr(table, name), golden[f"S{steps}.{name}"], rtol=1e-6, atol=1e-9)
    root = (1 - table.alphas).sqrt()
    torch.testing.assert_close(root, golden[f"S{steps}.sqrt_one_minus_alphas"], rtol=1e-6, atol=1e-9)
    assert not golden[f"S{steps}.sigmas"].any()  # eta 0: nothing random is added, and we have no such table


@pytest.mark.parametrize(
    ("final", "name"),
    [("published", "upstream"), ("unscaled", "divided_by_scale"), ("clean", "clean_x0_unscaled")],
)
def test_geo4d_sampling_trajectory(folder: Path, golden: dict[str, Tensor], final: ddim.Final, name: str) -> None:
    condition, seen = given(folder, "ddim_c"), []

    def toy(x: Tensor, timestep: Tensor) -> Tensor:
        t = timestep.float().reshape(-1, 1, 1, 1, 1)
        v = 0.5 * torch.cos(0.003 * t) * x + (0.2 - 0.0002 * t) * x.roll(1, 1) + 0.1 * condition
        seen.append((int(timestep[0]), x, v))
        return v

    found = ddim.sample(toy, given(folder, "ddim_xT"), ddim.zero_snr_schedule(), 5, final=final)
    assert [t for t, _, _ in seen] == [999, 799, 599, 399, 199]
    for index, (_, x, v) in enumerate(seen):
        torch.testing.assert_close(x, golden["traj.x_before_step"][index], rtol=0, atol=3e-6)
        torch.testing.assert_close(v, golden["traj.v"][index], rtol=0, atol=3e-6)
    torch.testing.assert_close(found, golden[f"traj.final_{name}"], rtol=0, atol=3e-6)
