"""The learned flow as a `Flow`: any size, hint from DIS, weights from one safetensors file."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from worldline.flow.dis import DisFlow, Flow, sized
from worldline.flow.network import CELL, LEAST_SIZE, FlowNetwork, NetworkConfig

Value = TypeVar("Value")
EMBEDDED = Path(__file__).parent / "weights" / "mini.safetensors"
BATCH_PIXELS = 64_000  # pairs are matched together up to this many pixels, to bound memory
KEPT = 24  # encodings remembered: a frame is in a pair per gap and direction


class LearnedFlow:
    """Flow of pictures by `FlowNetwork`; remembers the encodings of the pictures it saw last."""

    def __init__(self, network: FlowNetwork, hint: Flow | None = None) -> None:
        """Use a network in evaluation mode with a source of hints; None means DIS as in training."""
        self.network = network.eval().requires_grad_(False)
        self.hint = hint or sized(DisFlow())
        self._pictures: _Remembered[tuple[Tensor, Tensor]] = _Remembered(KEPT)
        self._hints: _Remembered[np.ndarray] = _Remembered(KEPT)

    def __call__(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Flow [H, W, 2] float32 in pixels from `source` to `target`, both [H, W] or [H, W, 3] uint8."""
        return self.with_error(source, target)[0]

    @torch.inference_mode()
    def with_error(
        self, source: UInt8[np.ndarray, "H W ..."], target: UInt8[np.ndarray, "H W ..."]
    ) -> tuple[Float[np.ndarray, "H W 2"], Float[np.ndarray, "H W"]]:
        """Flow in pixels, and the expected length of its error in pixels."""
        height, width = source.shape[:2]
        (one, first), (two, second) = self._encoded(source), self._encoded(target)
        ahead, back = (_batch([self._hinted(*pair)]).to(one) for pair in ((source, target), (target, source)))
        found = self.network.match(one, two, first, second, ahead, back)
        flow = found.flow[0, :, :height, :width].permute(1, 2, 0).float().cpu().numpy()
        return np.ascontiguousarray(flow), found.log_error[0, 0, :height, :width].float().exp().cpu().numpy()

    @torch.inference_mode()
    def many(
        self, pictures: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[Float[np.ndarray, "H W 2"], Float[np.ndarray, "H W"]]]:
        """Flow and expected error of each pair (source, target) of pictures of one size, several at a time.

        A picture is encoded once if its pairs are near each other; only a few encodings are kept.
        """
        height, width = pictures[0].shape[:2]
        together = max(1, BATCH_PIXELS // (height * width))
        for start in range(0, len(pairs), together):
            some = pairs[start : start + together]
            sides = [[self._encoded(pictures[pair[side]]) for pair in some] for side in (0, 1)]
            one, two, first, second = (torch.cat([x[part] for x in side]) for part in (0, 1) for side in sides)
            ahead, back = (
                _batch([self._hinted(pictures[pair[i]], pictures[pair[1 - i]]) for pair in some]).to(one)
                for i in (0, 1)
            )
            found = self.network.match(one, two, first, second, ahead, back)
            flows = found.flow[:, :, :height, :width].permute(0, 2, 3, 1).float().cpu().contiguous().numpy()
            yield from zip(flows, found.log_error[:, 0, :height, :width].float().exp().cpu().numpy(), strict=True)

    def _hinted(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The hint, remembered: it is also the way back of the opposite pair."""
        return self._hints.get((source.tobytes(), target.tobytes()), lambda: self.hint(source, target))

    def _encoded(self, picture: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._pictures.get(picture.tobytes(), lambda: self._encode(picture))

    def _encode(self, picture: np.ndarray) -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(np.ascontiguousarray(picture)).float() / 255
        values = values[..., None].expand(*values.shape, 3) if values.ndim == 2 else values
        padded = _padded(values.permute(2, 0, 1)[None]).to(next(self.network.parameters()))
        return padded, self.network.encode(padded)


class _Remembered(Generic[Value]):
    """The values of the keys asked for last; safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made if it is not remembered."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            self._values[key] = made
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return made


def _batch(flows: Sequence[np.ndarray]) -> Tensor:
    return _padded(torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2))


def _padded(values: Tensor) -> Tensor:
    """Border repeated to the right and below until the network takes the size."""
    height, width = values.shape[-2:]
    rows, columns = (max(-(-n // CELL) * CELL, LEAST_SIZE) for n in (height, width))
    return F.pad(values, (0, columns - width, 0, rows - height), mode="replicate")


def load(path: Path = EMBEDDED, device: torch.device | str = "cpu") -> LearnedFlow:
    """The learned flow of a checkpoint (network's sizes in the JSON beside it).

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it does not fit its own description.
    """
    from safetensors.torch import load_file

    about = path.with_suffix(".json")
    if not path.exists() or not about.exists():
        raise FileNotFoundError(f"There is no flow checkpoint {path} with a {about.name} beside it.")
    network = FlowNetwork(config_from(json.loads(about.read_text())["config"]))
    weights = {name: value.float() for name, value in load_file(path).items()}
    expected = {name: value.shape for name, value in network.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != expected:
        raise ValueError(f"{path} does not hold the network that {about.name} describes; train or copy it again.")
    network.load_state_dict(weights)
    return LearnedFlow(network.to(device))


def config_from(values: dict[str, Any]) -> NetworkConfig:
    """Sizes from JSON; an unknown name is refused.

    Raises:
        ValueError: an unknown name.
    """
    names = {field.name for field in fields(NetworkConfig)}
    if unknown := sorted(set(values) - names):
        raise ValueError(f"NetworkConfig has no {unknown[0]!r}; it has {', '.join(sorted(names))}.")
    sizes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return NetworkConfig(**sizes)
