"""Where the data of a stored run is now: where it was, where it was moved to, or a message."""

import pytest

from chronostat.config import load_config
from chronostat.errors import DataError
from chronostat.runs.store import RunStore
from chronostat.runs.stored import stored_config
from chronostat.runs.workload import _places


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A run on files of a task that was begun beside them and is looked at from another folder."""
    then, now = tmp_path / "then", tmp_path / "now"
    for folder in (then, now):
        folder.mkdir()
    for name in ("a.parquet", "b.parquet"):
        (then / name).touch()

    def run(*names):
        config = load_config(None, ["data.task=lmms:pope", f"data.files={list(names)}".replace("'", '"')])
        monkeypatch.chdir(then)
        metadata = {"config": config.model_dump(mode="json"), "data": _places(config.data)}
        monkeypatch.chdir(now)
        with RunStore.create(tmp_path / "run", metadata) as store:
            return store

    return run


def test_files_that_were_named_from_another_folder_are_found(stored, tmp_path):
    config = stored_config(stored("a.parquet", "b.parquet"))
    assert config.data.files == (f"{tmp_path}/then/a.parquet", f"{tmp_path}/then/b.parquet")


def test_files_that_have_moved_are_in_the_folder_that_is_named(stored, tmp_path):
    store = stored("a.parquet", "b.parquet")
    moved = (tmp_path / "then").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"is not in a.parquet nor in .*/then/a.parquet; name .* with --data FILE"):
        stored_config(store)
    assert stored_config(store, moved).data.files == (f"{moved}/a.parquet", f"{moved}/b.parquet")


def test_one_file_that_has_moved_is_named_itself(stored, tmp_path):
    store = stored("a.parquet")
    moved = (tmp_path / "then" / "a.parquet").rename(tmp_path / "renamed.parquet")
    assert stored_config(store, moved).data.files == (str(moved),)
    with pytest.raises(DataError, match=r"is not in .*none.parquet; name"):
        stored_config(store, tmp_path / "none.parquet")
