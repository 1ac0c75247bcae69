"""Old PyTorch files, written here byte by byte as PyTorch's documentation of the form has them."""

import os
import pickle
import struct

import numpy as np
import pytest
from old_torch_file import Call, torch_names, write_old  # noqa: F401

from experiments.segmentation.torch_file import read_torch_weights


def test_tensors_come_back_with_offset_shape_and_strides(tmp_path, torch_names):  # noqa: F811
    values = np.arange(7, dtype=np.float32)
    tensors = {"plain": (values, 1, (2, 3), (3, 1)), "turned": (values, 0, (3, 2), (1, 3))}
    write_old(tmp_path / "old.pth", tensors, torch_names)
    read = read_torch_weights(tmp_path / "old.pth")
    assert list(read) == ["plain", "turned"]
    np.testing.assert_array_equal(read["plain"], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(read["turned"], [[0, 3], [1, 4], [2, 5]])
    assert read["plain"].dtype == np.float32


def test_a_file_that_would_run_something_is_refused(tmp_path):
    path = tmp_path / "bad.pth"
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {}):
            pickle.dump(part, file, protocol=2)
        pickle.dump({"weight": Call(os.getcwd)}, file, protocol=2)
    with pytest.raises(ValueError, match=r"tensors and nothing else.*bad.pth.*getcwd"):
        read_torch_weights(path)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "zip.pth").write_bytes(b"PK\x03\x04 a newer form")
    with pytest.raises(ValueError, match=r"before 1.6.*Received: path=zip.pth"):
        read_torch_weights(tmp_path / "zip.pth")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (3, 3), (3, 1)),  # two numbers too many
        (2, (2, 3), (3, 1)),
        (8, (1,), (1,)),
        (-3, (3,), (1,)),
        (6, (3,), (-1,)),  # backwards, within the storage: no file of weights has it
        (0, (-1, -7), (7, 1)),
        (0, (2,), (2**62,)),  # 2**62 * 4 bytes overflows to 0
        (0, (2**62, 4), (0, 1)),
        (0, (1000,), (0,)),  # one number, a thousand times
        (2**70, (1,), (1,)),
        (0, (2, 3), (3,)),
        (0, (2.0,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, torch_names, offset, shape, strides):  # noqa: F811
    values = np.arange(7, dtype=np.float32)
    path = tmp_path / "crafted.pth"
    write_old(path, {"head.weight": (values, offset, shape, strides)}, torch_names)
    with pytest.raises(ValueError, match=r"crafted\.pth \('head\.weight' reaches out"):
        read_torch_weights(path)


def test_one_number_and_none_at_all_are_read(tmp_path, torch_names):  # noqa: F811
    values = np.arange(7, dtype=np.float32)
    tensors = {"steps": (values, 6, (), ()), "none": (values, 7, (0, 3), (3, 1))}
    write_old(tmp_path / "old.pth", tensors, torch_names)
    read = read_torch_weights(tmp_path / "old.pth")
    assert read["steps"] == 6
    assert read["none"].shape == (0, 3)


@pytest.mark.parametrize("count", [-1, 8, 2**61, -(2**62)])
def test_a_storage_longer_than_the_file_is_refused(tmp_path, torch_names, count):  # noqa: F811
    path = tmp_path / "crafted.pth"
    write_old(path, {"weight": (np.arange(7, dtype=np.float32), 0, (7,), (1,))}, torch_names)
    content = path.read_bytes()
    at = len(content) - 7 * 4 - 8
    path.write_bytes(content[:at] + struct.pack("<q", count) + content[at + 8 :])
    with pytest.raises(ValueError, match=rf"crafted\.pth \(a storage of {count} numbers, 28 bytes"):
        read_torch_weights(path)


@pytest.mark.parametrize("kept", [0, 1, 40, -30, -1])
def test_a_cut_file_is_refused(tmp_path, torch_names, kept):  # noqa: F811
    path = tmp_path / "cut.pth"
    write_old(path, {"weight": (np.arange(7, dtype=np.float32), 0, (7,), (1,))}, torch_names)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"Received: path=cut\.pth"):
        read_torch_weights(path)
