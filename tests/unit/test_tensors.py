"""Tensors in files that are there whole or not at all."""

import os

import pytest
import torch

from chronostat.errors import StoreError
from chronostat.files import write_whole
from chronostat.tensors import read_tensors, write_tensors


def test_tensors_and_numbers_come_back(tmp_path):
    tensors = {"a": torch.rand(2, 3), "empty": torch.zeros(0, 4), "count": torch.tensor(7), "t": torch.rand(3, 2).T}
    write_tensors(tmp_path / "x.safetensors", tensors, {"step": 3, "window": [1.5]})
    read, data = read_tensors(tmp_path / "x.safetensors")
    assert data == {"step": 3, "window": [1.5]}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(1)}, {})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StoreError, match=r"cannot write .*x.safetensors: .*No space left on device; free some space"):
        write_tensors(path, {"a": torch.ones(1)}, {})
    with pytest.raises(StoreError, match="No space left"):
        write_whole(tmp_path / "y.json", b"{}")
    assert read_tensors(path)[0]["a"].tolist() == [0.0]
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*x.safetensors: Not a directory; a file stands where"):
        write_tensors(tmp_path / "file" / "x.safetensors", {"a": torch.zeros(1)}, {})


@pytest.mark.parametrize("content", [None, b"", b"not tensors at all"])
def test_what_cannot_be_read(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot read .*x.safetensors.*not written by this version of chronostat"):
        read_tensors(path)


def test_a_file_that_was_cut_off_or_comes_from_elsewhere(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.rand(100)}, {})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StoreError, match="cannot read"):
        read_tensors(path)
    save_file({"a": torch.rand(3)}, path)
    with pytest.raises(StoreError, match="cannot read"):
        read_tensors(path)


def test_a_file_is_replaced(tmp_path):
    write_whole(tmp_path / "x.json", b"one")
    write_whole(tmp_path / "x.json", b"two")
    assert (tmp_path / "x.json").read_bytes() == b"two"
    assert len(list(tmp_path.iterdir())) == 1
