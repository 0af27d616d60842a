"""Arrays in a pickle, read as data: nothing in the file is called or imported.

A pickle is a program for a small stack machine, and unpickling runs it, so a download is never unpickled. Here the
opcodes are parsed (pickletools), calls become inert records of a name and its arguments, and only records that describe
an array (of numpy or torch), a number, a text or a container of those are turned into one, by code of this file.
(https://docs.python.org/3/library/pickletools.html, PEP 3154; numpy's ndarray.__reduce__ and torch._utils)
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST_CODE = 1 << 16  # opcodes; a file of arrays has hundreds
_MARK = object()


@dataclass
class Name:
    """A global that the pickle wants."""

    path: str


@dataclass
class Call:
    """A call that the pickle wants made."""

    path: str
    arguments: tuple[Any, ...]
    state: Any = None


def read(path: Path) -> Any:
    """The containers, numbers, texts and arrays of a pickle; torch tensors and numpy arrays.

    Raises:
        ValueError: it holds something else, or is damaged.
    """
    return convert(parse(path.read_bytes()))


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of an .npz file, without reading them."""
    with zipfile.ZipFile(path) as archive:
        out = {}
        for name in archive.namelist():
            with archive.open(name) as stream:
                out[name.removesuffix(".npy")] = _header(stream)[0]
        return out


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, those of Python objects (bytes, texts, arrays) too.

    Raises:
        ValueError: an object is no data.
    """
    out = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as stream:
                data = io.BytesIO(stream.read())  # the whole member: its check sum is verified at its end
                shape, fortran, dtype = _header(data)
                if dtype.hasobject:
                    out[name.removesuffix(".npy")] = np.asarray(convert(parse(data.read())))
                    continue
                values = np.frombuffer(data.read(), dtype).reshape(shape, order="F" if fortran else "C")
                out[name.removesuffix(".npy")] = values
    return out


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, dtype) of an .npy stream, which then stands at the data."""
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"An array has the format {version}, which is newer than 2.0.")
    return read_header[version](stream)


def parse(data: bytes) -> Any:
    """The object a pickle describes, with Name and Call in place of what would be imported and called.

    Raises:
        ValueError: it uses an opcode that arrays do not need, or ends early.
    """
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if count > LARGEST_CODE:
            raise ValueError("The pickle is a longer program than arrays need.")
        machine.step(opcode.name, argument)
    raise ValueError("The pickle has no end.")


class _Machine:
    """The stack machine, without the opcodes that run anything."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _SKIPPED:
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]() if callable(_CONSTANTS[name]) else _CONSTANTS[name])
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise ValueError(f"The pickle uses {name}, which arrays do not need.")

    def since_mark(self) -> list[Any]:
        at = max(i for i, value in enumerate(self.stack) if value is _MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def take(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def items(self) -> None:
        flat = self.since_mark()
        self.stack[-1].update(zip(flat[::2], flat[1::2], strict=True))

    def name(self) -> None:
        module, title = self.take(2)
        self.stack.append(Name(f"{module}.{title}"))

    def call(self) -> None:
        target, arguments = self.take(2)
        if not isinstance(target, Name) or not isinstance(arguments, tuple):
            raise ValueError("The pickle calls something that is not a plain name.")
        self.stack.append(Call(target.path, arguments))

    def build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Call):
            raise ValueError("The pickle gives a state to something that is not an object.")
        self.stack[-1].state = state


_SKIPPED = {"PROTO", "FRAME"}
_CONSTANTS: dict[str, Any] = {
    "MARK": lambda: _MARK, "EMPTY_TUPLE": (), "EMPTY_LIST": list, "EMPTY_DICT": dict, "NONE": None, "NEWTRUE": True,
    "NEWFALSE": False,
}  # fmt: skip
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING",
    "SHORT_BINSTRING", "STRING",
}  # fmt: skip
_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.stack.append(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.stack.append(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.stack.append(tuple(m.take(3))),
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "DICT": lambda m, _: m.stack.append(dict(zip(*[iter(m.since_mark())] * 2, strict=True))),
    "APPEND": lambda m, _: m.stack[-2].append(m.stack.pop()),
    "APPENDS": lambda m, _: (lambda items: m.stack[-1].extend(items))(m.since_mark()),
    "SETITEM": lambda m, _: (lambda pair: m.stack[-1].__setitem__(*pair))(m.take(2)),
    "SETITEMS": lambda m, _: m.items(),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    **{name: lambda m, key: m.memo.__setitem__(int(key), m.stack[-1]) for name in ("PUT", "BINPUT", "LONG_BINPUT")},
    **{name: lambda m, key: m.stack.append(m.memo[int(key)]) for name in ("GET", "BINGET", "LONG_BINGET")},
    "GLOBAL": lambda m, names: m.stack.append(Name(names.replace(" ", "."))),
    "STACK_GLOBAL": lambda m, _: m.name(),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
}


def convert(value: Any) -> Any:
    """Arrays and containers of what `parse` found.

    Raises:
        ValueError: there is a call that does not make an array.
    """
    if isinstance(value, dict):
        return {convert(key): convert(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(convert(item) for item in value)
    if isinstance(value, Call):
        return _made(value)
    if isinstance(value, Name):
        raise ValueError(f"The pickle holds {value.path}, which is no data.")
    return value


def _made(call: Call) -> Any:
    tail = call.path.split(".", 1)[-1].replace("_core.", "core.")
    if call.path.startswith("numpy") and tail == "core.multiarray._reconstruct":
        _, shape, dtype, fortran, content = call.state
        return _array(content, _dtype(dtype), shape, "F" if fortran else "C")
    if call.path.startswith("numpy") and tail == "core.numeric._frombuffer":
        content, dtype, shape, order = call.arguments
        return _array(content, _dtype(dtype), shape, order)
    if call.path.startswith("numpy") and tail == "core.multiarray.scalar":
        return np.frombuffer(convert(call.arguments[1]), _dtype(call.arguments[0]))[0]
    if call.path == "torch._utils._rebuild_tensor_v2":
        return _tensor(*call.arguments[:4])
    if call.path == "_codecs.encode":  # bytes, before protocol 3
        return call.arguments[0].encode("latin-1")
    if call.path == "collections.OrderedDict":
        return {}
    raise ValueError(f"The pickle wants to call {call.path}, which is not needed for arrays.")


def _dtype(call: Any) -> np.dtype[Any]:
    if not isinstance(call, Call) or call.path != "numpy.dtype":
        raise ValueError("An array of the pickle has no plain dtype.")
    dtype = np.dtype(str(call.arguments[0]))
    return dtype.newbyteorder(">") if call.state and call.state[1] == ">" else dtype


def _array(content: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> np.ndarray:
    if dtype.hasobject:
        out = np.empty(len(content), dtype=object)
        for i, item in enumerate(content):
            out[i] = convert(item)
        return out.reshape(shape, order=order)
    return np.frombuffer(convert(content), dtype).reshape(shape, order=order)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A torch tensor, whose storage is bytes written by torch.save."""
    if not isinstance(storage, Call) or storage.path != "torch.storage._load_from_bytes":
        raise ValueError("A tensor of the pickle has no plain storage.")
    with io.BytesIO(convert(storage.arguments[0])) as stream:
        loaded = torch.load(stream, map_location="cpu", weights_only=True)
    return torch.empty(0, dtype=loaded.dtype).set_(loaded._untyped_storage, offset, size, stride)
