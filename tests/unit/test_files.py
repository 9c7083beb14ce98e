"""Files that are there whole or not at all."""

import os

import pytest

from chronostat.errors import StoreError
from chronostat.files import write_whole


def test_a_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_whole(path, b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StoreError, match=r"cannot write .*x.safetensors: .*No space left on device; free some space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*x.safetensors: Not a directory; a file stands where"):
        write_whole(tmp_path / "file" / "x.safetensors", b"{}")
