"""Arrays in files, and what is said of files that hold none."""

import numpy as np
import pytest

from chronostat.errors import StoreError
from chronostat.tensors import read_tensors, tensors_content


def test_arrays_come_back_in_their_shapes(tmp_path):
    arrays = {
        "a": np.random.default_rng(0).random((2, 3)),
        "empty": np.zeros((0, 4)),
        "number": np.array(0.5),
        "turned": np.arange(6.0).reshape(3, 2).T,
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensors_content(arrays))
    read = read_tensors(path)
    assert {name: array.shape for name, array in read.items()} == {n: array.shape for n, array in arrays.items()}
    assert all(np.array_equal(read[name], array) for name, array in arrays.items())


@pytest.mark.parametrize("content", [None, b"", b"not arrays at all"])
def test_what_cannot_be_read(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot read .*x.safetensors.*not written by this version of chronostat"):
        read_tensors(path)


def test_a_file_that_was_cut_off(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensors_content({"a": np.ones(100)})[:-50])
    with pytest.raises(StoreError, match="cannot read"):
        read_tensors(path)
