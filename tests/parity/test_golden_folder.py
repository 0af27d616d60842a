"""Another set of golden numbers of the same layout can replace the shipped one: salt and tolerances are its own."""

from __future__ import annotations

import json
import zlib

import pytest
import torch
from golden_numbers import Golden
from safetensors.torch import save_file
from torch import nn


def other_set(folder, salt: str, stored_with: str) -> Golden:
    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        seed = zlib.crc32((stored_with + name).encode())
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    weight = (draw("weight", (3, 4)) / 2).contiguous()  # sqrt of 4 inputs
    bias = 0.1 * draw("bias", (3,))
    seen = draw("input:x", (2, 4))
    arrays = {"rule.weight": weight.flatten()[:8].clone(), "in.x": seen, "out.y": seen @ weight.T + bias}
    save_file(arrays, folder / "line.safetensors")
    entries = {name: {"atol": 1e-5, "rtol": 1e-5} for name in arrays}
    manifest = {"salt": salt, "files": {"line.safetensors": {"arrays": entries}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Golden(folder)


def test_a_set_with_another_salt_is_checked_by_its_own_rule(tmp_path):
    golden = other_set(tmp_path, "pepper", "pepper")
    layer = golden.fill(nn.Linear(4, 3, device="meta"), "line")
    golden.check("line", "out.y", layer(golden.input("x", (2, 4))))
    with pytest.raises(AssertionError, match="out.y"):
        golden.check("line", "out.y", layer(golden.input("x", (2, 4))) + 1e-3)


def test_a_set_whose_rule_disagrees_is_noticed(tmp_path):
    golden = other_set(tmp_path, "", "pepper")
    with pytest.raises(AssertionError, match="weight rule"):
        golden.fill(nn.Linear(4, 3, device="meta"), "line")
