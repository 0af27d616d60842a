"""Golden numbers: arrays, tolerances and the weight rule of a folder, read from that folder's own manifest."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


@dataclass
class Golden:
    """One folder of golden numbers; the salt and every tolerance come from its manifest."""

    folder: Path
    manifest: dict = field(init=False)

    def __post_init__(self) -> None:
        self.manifest = json.loads((self.folder / "manifest.json").read_text())

    def load(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        seed = zlib.crc32((self.manifest["salt"] + name).encode())
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)

    def input(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.draw("input:" + name, shape)

    def weight(self, key: str, shape: tuple[int, ...]) -> Tensor:
        value = self.draw(key, shape)
        if len(shape) >= 2:
            return value / math.sqrt(math.prod(shape[1:]))
        if math.prod(shape) == 1:
            return 0.1 * value
        return 1 + 0.1 * value if key.endswith("weight") else 0.1 * value

    @torch.no_grad()
    def fill(self, module: nn.Module, file: str) -> nn.Module:
        """Give a module (on the meta device) the rule's weights, once the rule agrees with the stored samples."""
        arrays = self.load(file)
        state = {key: self.weight(key, tuple(value.shape)) for key, value in module.state_dict().items()}
        for name, expected in arrays.items():
            if name.startswith("rule."):
                key = name.removeprefix("rule.")
                assert torch.equal(state[key].flatten()[:8], expected), f"the weight rule gives other numbers for {key}"
        module.load_state_dict(state, strict=True, assign=True)
        return module.eval()

    def check(self, file: str, name: str, value: Tensor) -> None:
        expected, tolerance = self.load(file)[name], self.manifest["files"][f"{file}.safetensors"]["arrays"][name]
        torch.testing.assert_close(
            value.to(expected.dtype).reshape(expected.shape),
            expected,
            atol=tolerance["atol"],
            rtol=tolerance["rtol"],
            msg=lambda text: f"{file}: {name}: {text}",
        )
