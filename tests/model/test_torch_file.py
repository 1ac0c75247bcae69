"""Old PyTorch files, written here byte by byte as PyTorch's documentation of the form has them."""

import os
import pickle

import numpy as np
import pytest
from old_torch_file import Call, torch_names, write_old  # noqa: F401

from steatosis_tf.model.torch_file import read_torch_weights


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
