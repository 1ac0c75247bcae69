"""Reads a file of weights that PyTorch saved before its version 1.6, without PyTorch."""

import collections
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
        ValueError: if the file is of another form, or holds anything but tensors of these types.
            Nothing in it is executed.
    """
    with path.open("rb") as file:
        try:
            if _Reader(file).load() != _MAGIC:
                raise ValueError
            _Reader(file).load()  # the protocol's version
            _Reader(file).load()  # the machine that wrote it
            tensors = _Reader(file).load()
            keys = _Reader(file).load()
        except (pickle.UnpicklingError, EOFError, ValueError) as error:
            raise ValueError(
                "Expected weights as PyTorch saved them before 1.6, tensors and nothing else. "
                f"Received: path={path.name} ({error or 'not such a file'})."
            ) from error
        dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
        storages = {key: _storage(file, dtypes[key]) for key in keys}
    return {name: _array(tensor, storages) for name, tensor in tensors.items()}


def _storage(file: BinaryIO, dtype: np.dtype[Any]) -> np.ndarray:
    (count,) = struct.unpack("<q", file.read(8))
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _array(tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    flat = storages[tensor.storage.key][tensor.offset :]
    strides = [step * flat.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()


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
