"""The folder of MoRe4D's golden numbers: its salt, weight rule and tolerance, and models filled by that rule."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


@dataclass
class Numbers:
    folder: Path
    manifest: dict = field(init=False)
    tolerance: float = field(init=False)

    def __post_init__(self) -> None:
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        stated = re.search(r"max \|difference\| <= (\S+) x max\(1", (self.folder / "README.md").read_text())
        self.tolerance = float(stated[1]) if stated else 2e-4

    def load(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def json(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.json").read_text())

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        seed = zlib.crc32((self.manifest["salt"] + name).encode())
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)

    def input(self, name: str, *shape: int) -> Tensor:
        return self.draw("input:" + name, shape)

    def weight(self, key: str, shape: tuple[int, ...]) -> Tensor:
        value = self.draw(key, shape)
        if len(shape) >= 2:
            return value / math.sqrt(math.prod(shape[1:]))
        return 1 + 0.1 * value if key.endswith("weight") else 0.1 * value

    @torch.no_grad()
    def fill(
        self, module: nn.Module, published: Callable[[str], str], kept: tuple[str, ...] = ("pos_embed",)
    ) -> nn.Module:
        """Give every parameter the rule's weight of its published name, except the ones kept as they are."""
        for key, value in module.state_dict().items():
            if not key.endswith(kept):
                value.copy_(self.weight(published(key), tuple(value.shape)))
        return module.eval()

    def check(self, expected: Tensor, found: Tensor, tolerance: float | None = None) -> None:
        assert found.shape == expected.shape
        limit = (tolerance or self.tolerance) * max(1.0, float(expected.abs().max()))
        difference = float((found.detach().float() - expected.float()).abs().max())
        assert difference <= limit, f"{difference:.3g} > {limit:.3g}"
