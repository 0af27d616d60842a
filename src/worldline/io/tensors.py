"""Weight files on disk: safetensors only, keys and shapes compared strictly, differences told in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5")
"""Endings of weight files that can run code or that we do not read."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor by key; the empty mapping value None is never used: unknown shapes are left out."""


class WeightsError(ValueError):
    """Weights that are missing, damaged, unsafe or not the ones expected; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a weight file differs from what the network needs.

    Attributes:
        missing: keys the network needs and the file lacks.
        unexpected: keys the file has and the network does not know.
        reshaped: key -> (shape in the file, shape the network needs).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def describe(self, limit: int = 3) -> str:
        """The difference in words, at most `limit` keys of each kind by name."""
        shapes = [f"{key} is {list(a)}, not {list(b)}" for key, (a, b) in self.reshaped.items()]
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of the wrong shape", shapes))
        parts = []
        for kind, entries in kinds:
            if entries:
                more = f" and {len(entries) - limit} more" if len(entries) > limit else ""
                parts.append(f"{len(entries)} {kind} ({'; '.join(entries[:limit])}{more})")
        return ", ".join(parts) or "none"


def compare(expected: Shapes, found: Mapping[str, tuple[int, ...] | None], ignored: Iterable[str] = ()) -> Difference:
    """Compare a file with what the network needs; `ignored` are key prefixes the file may have in addition.

    A shape of None in `found` is unknown (an index without the files it lists) and only its key is compared.
    """
    ignored = tuple(ignored)
    reshaped = {}
    for key, shape in found.items():
        if shape is not None and key in expected and tuple(shape) != tuple(expected[key]):
            reshaped[key] = (tuple(shape), tuple(expected[key]))
    return Difference(
        missing=tuple(sorted(set(expected) - set(found))),
        unexpected=tuple(sorted(key for key in found if key not in expected and not key.startswith(ignored))),
        reshaped=reshaped,
    )


def check(
    name: str, expected: Shapes, found: Mapping[str, tuple[int, ...] | None], ignored: Iterable[str] = ()
) -> None:
    """Raise WeightsError when `compare` finds a difference; `name` is what the user calls the file."""
    refuse(name, compare(expected, found, ignored))


def refuse(name: str, difference: Difference) -> None:
    """Raise WeightsError when there is a difference."""
    if difference:
        raise WeightsError(
            f"The weights in {name} do not fit this network: keys {difference.describe()}; "
            "use the files made for this system and version."
        )


def choose(names: Iterable[str], where: str, variant: str | None = None) -> list[str]:
    """The safetensors files (and index) of one model among the names in its folder.

    With a variant ("fp16") only its files are taken, or those without any variant if it has none.

    Raises:
        WeightsError: there is none; says so when there are only pickles.
    """
    names = sorted(names)
    tensors = [name for name in names if name.endswith(".safetensors")]
    if not tensors:
        pickles = [name for name in names if name.endswith(PICKLES)]
        if pickles:
            raise WeightsError(
                f"{where} has only {pickles[0]}, which is not safetensors and could run code when read; it is refused: "
                "ask for a safetensors file or convert it on a machine you can spare."
            )
        raise WeightsError(f"{where} has no .safetensors file; check the name of the folder or repository.")
    preferred = [name for name in tensors if variant is not None and f".{variant}" in name]
    chosen = preferred or [name for name in tensors if name.count(".") == 1] or tensors
    # model.safetensors.index.json and, with a variant, model.safetensors.index.fp16.json
    wanted = f".index.{variant}.json" if preferred else ".index.json"
    return chosen + [name for name in names if name.endswith(wanted)]


def model_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of one model in a local folder; all shards that its index lists must be there.

    Raises:
        WeightsError: no such folder, no safetensors, or a missing shard.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder} is missing; the weights need a folder of that name.")
    names = choose([entry.name for entry in folder.iterdir() if entry.exists()], str(folder), variant)
    for index in (name for name in names if name.endswith(".json")):
        listed = json.loads((folder / index).read_text())["weight_map"].values()
        absent = sorted(set(listed) - set(names))
        if absent:
            raise WeightsError(f"{folder / index} lists {absent[0]}, which is not there; download it again.")
    return [folder / name for name in names if name.endswith(".safetensors")]


def header(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a safetensors file, without reading the tensors.

    Raises:
        WeightsError: the file is cut off, damaged, or a pickle under a wrong name.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as stream:
        start = stream.read(9)
    # A safetensors file begins with 8 bytes of length, which may look like a pickle's mark, and then a brace.
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04") and start[8:] != b"{":
        raise WeightsError(f"{path} is a pickle named .safetensors, which could run code when read; it is refused.")
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path} is cut off or damaged ({error}); delete it and download it again.") from error


def key_table(folder: Path, variant: str | None = None) -> dict[str, tuple[int, ...] | None]:
    """Shape of every tensor of a model in a folder; None for all when only its index is there, not the tensors."""
    indexes = sorted(folder.glob("*.safetensors.index*.json"))
    if indexes and not list(folder.glob("*.safetensors")):
        return dict.fromkeys(json.loads(indexes[0].read_text())["weight_map"])
    table: dict[str, tuple[int, ...] | None] = {}
    for path in model_files(folder, variant):
        table.update(header(path))
    return table


def read(
    files: Iterable[Path],
    expected: Shapes,
    *,
    ignored: Iterable[str] = (),
    rename: Callable[[str], str] = lambda key: key,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The tensors of one model by key, after a strict check; keys under `ignored` prefixes are not even read.

    `rename` maps legacy keys to today's. Raises WeightsError for any difference.
    """
    return dict(stream(files, expected, ignored=ignored, rename=rename, dtype=dtype))


def stream(
    files: Iterable[Path],
    expected: Shapes,
    *,
    ignored: Iterable[str] = (),
    rename: Callable[[str], str] = lambda key: key,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """As `read`, one tensor after the other, so that who puts each in its place never holds two copies of a model.

    Everything is compared, by the headers of all files, before the first tensor comes.
    """
    from safetensors import safe_open

    files, ignored = list(files), tuple(ignored)
    tables = {path: header(path) for path in files}
    found = {rename(key): shape for table in tables.values() for key, shape in table.items()}
    check(files[0].parent.name if files else "?", expected, found, ignored)
    for path, table in tables.items():
        with safe_open(path, framework="pt") as opened:
            for key in table:
                if rename(key) in expected:
                    value = opened.get_tensor(key)
                    yield rename(key), value.to(dtype) if dtype is not None and value.is_floating_point() else value
