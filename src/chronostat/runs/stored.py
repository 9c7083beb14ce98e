"""What a stored run says of itself."""

from pathlib import Path

from pydantic import ValidationError

from chronostat.config import Config
from chronostat.control import controller_files
from chronostat.errors import ConfigError, DataError, StoreError
from chronostat.runs.store import RunStore
from chronostat.runs.store.run import METADATA


def is_trained(store: RunStore) -> bool:
    """Whether a run holds a controller, so that its training has ended."""
    return store.holds(f"{controller_files.FOLDER}/{controller_files.METADATA}")


def stored_config(store: RunStore, data: Path | None = None) -> Config:
    """The configuration that a run began with, and where its data is now.

    Args:
        store: of the run.
        data: where its own samples are, if they have moved, or the folder in which the files of its task are now;
            whether they are the same is seen when they are loaded.

    Raises:
        StoreError: it was not written by this version.
        ConfigError: ``data`` for a run without own data.
        DataError: the data is neither where the configuration says nor where it was then.
    """
    return _with_data(store, _stored(store), data)


def _with_data(store: RunStore, config: Config, data: Path | None) -> Config:
    asked, then = config.data, store.metadata.get("data", {})
    if asked.path is not None:
        found: dict[str, object] = {"path": _found(store, asked.path, then.get("path"), data)}
    elif asked.files:
        absolute = then.get("files") or [None] * len(asked.files)
        moved = [data / Path(file).name if data and data.is_dir() else data for file in asked.files]
        places = zip(asked.files, absolute, moved, strict=True)
        found = {"files": tuple(_found(store, *of_file) for of_file in places)}
    elif data is not None:
        raise ConfigError(f"--data {data}: the run in {store.folder} has no data of its own; leave it out")
    else:
        return config
    return config.model_copy(update={"data": asked.model_copy(update=found)})


def _found(store: RunStore, asked: str, then: str | None, moved: Path | None) -> str:
    """Where a file is: where it was moved to, or else where the configuration says or where that was then."""
    places = [moved] if moved else [Path(asked).expanduser(), *([Path(then)] if then else ())]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise DataError(
            f"the data of the run in {store.folder} is not in {' nor in '.join(dict.fromkeys(map(str, places)))}; name "
            "where it is now with --data FILE"
        )
    return str(found)


def _stored(store: RunStore) -> Config:
    try:
        return Config.model_validate(store.metadata["config"])
    except KeyError:
        problem = "there is none"
    except ValidationError as error:
        first, *more = error.errors()
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}{f' ({len(more)} more)' if more else ''}"
    raise StoreError(
        f"the configuration in {store.folder / METADATA} cannot be used: {problem}; it was not written by this version "
        f"of chronostat. chronostat report {store.folder} shows it all the same; to train and judge begin a new run"
    )
