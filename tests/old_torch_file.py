"""Writes PyTorch's files of weights as it did before 1.6, without PyTorch."""

import collections
import pickle
import struct
import sys
import types

import numpy as np
import pytest


class _Storage:
    """Stands for one of PyTorch's storages while a file is written."""

    def __init__(self, key: str, values: np.ndarray) -> None:
        self.key, self.values = key, values


class _Writer(pickle._Pickler):
    """Names PyTorch's classes without having them, as its own pickler names them."""

    def persistent_id(self, obj):
        if isinstance(obj, _Storage):
            return ("storage", sys.modules["torch"].FloatStorage, obj.key, "cpu", len(obj.values))
        return None


class Call:
    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture
def torch_names(monkeypatch):
    """`torch.FloatStorage` and `torch._utils._rebuild_tensor_v2`, as names only."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    exec("def _rebuild_tensor_v2(*arguments): ...", utils.__dict__)
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return utils._rebuild_tensor_v2


def write_old(path, tensors, rebuild) -> None:
    """`tensors`: name -> (flat values, offset, shape, strides)."""
    storages = {name: _Storage(name, part[0]) for name, part in tensors.items()}
    state = collections.OrderedDict(
        (name, Call(rebuild, storages[name], offset, shape, strides, False, None))
        for name, (_, offset, shape, strides) in tensors.items()
    )
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(part, file, protocol=2)
        _Writer(file, protocol=2).dump(state)
        pickle.dump(list(storages), file, protocol=2)
        for storage in storages.values():
            file.write(struct.pack("<q", len(storage.values)))
            file.write(storage.values.astype("<f4").tobytes())
