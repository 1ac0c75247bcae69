"""Reads a file of weights that PyTorch saved before its version 1.6, without PyTorch."""

import collections
import math
import os
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "LongStorage": np.dtype("<i8"),
}
# What a file that is no such file, or a crafted one, can raise on its way to arrays.
_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, struct.error,
    KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype[Any]
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_weights(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a state dict by its name.

    Args:
        path: a `.pth` of the old form: pickled names, then the storages one after another.

    Returns:
        Name -> array of the stored shape, float32 or int64.

    Raises:
        ValueError: if the file is of another form, holds anything but tensors of these types, is
            cut, or describes a tensor that reaches out of its storage. Nothing in it is executed.
    """
    with path.open("rb") as file:
        try:
            return _weights(file)
        except _BROKEN as error:
            raise ValueError(
                "Expected weights as PyTorch saved them before 1.6, tensors and nothing else. "
                f"Received: path={path.name} ({error or 'not such a file'}). "
                "Was it copied whole, and does it come from its authors?"
            ) from error


def _weights(file: BinaryIO) -> dict[str, np.ndarray]:
    if _Reader(file).load() != _MAGIC:
        raise ValueError
    _Reader(file).load()  # the protocol's version
    _Reader(file).load()  # the machine that wrote it
    tensors = _Reader(file).load()
    keys = _Reader(file).load()
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
    storages = {key: _storage(file, dtypes[key]) for key in keys}
    return {name: _array(name, tensor, storages) for name, tensor in tensors.items()}


def _storage(file: BinaryIO, dtype: np.dtype[Any]) -> np.ndarray:
    (count,) = struct.unpack("<q", file.read(8))
    start = file.tell()
    num_left = file.seek(0, os.SEEK_END) - start
    # Before reading: a number made up would ask for all memory, a negative one for the whole rest.
    if not 0 <= count <= num_left // dtype.itemsize:
        raise ValueError(f"a storage of {count} numbers, {num_left} bytes are left")
    file.seek(start)
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _array(name: str, tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    flat = storages[tensor.storage.key]
    _check_inside(name, tensor, flat.size)
    strides = [step * flat.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides).copy()


def _check_inside(name: str, tensor: _Tensor, num_stored: int) -> None:
    """Refuse a tensor that is not within its storage: `as_strided` would read what lies behind it.

    Python's integers do not overflow, so the comparison holds for any number in the file. The
    strides of weights never repeat a number (an expanded tensor), so that a small file cannot ask
    for more than it holds.
    """
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    sound = len(tensor.shape) == len(tensor.strides) and all(
        type(number) is int and number >= 0 for number in numbers
    )
    if sound:
        steps = zip(tensor.shape, tensor.strides, strict=True)
        size = math.prod(tensor.shape)
        last = tensor.offset + sum((length - 1) * step for length, step in steps)
        sound = tensor.offset <= num_stored and size <= num_stored
        sound = sound and (size == 0 or last < num_stored)
    if not sound:
        raise ValueError(
            f"{name!r} reaches out of its storage of {num_stored} numbers: offset={tensor.offset} "
            f"shape={tensor.shape} strides={tensor.strides}"
        )


class _Reader(pickle.Unpickler):
    """Knows tensors and dictionaries; refuses every other name, so that nothing can run."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
        } | {("torch", dtype): dtype for dtype in _DTYPES}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: tuple[Any, ...]) -> _Storage:
        # ("storage", type, key, device, number of elements, view)
        return _Storage(_DTYPES[pid[1]], pid[2])


def _rebuilt(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)
