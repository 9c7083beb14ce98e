"""What a stored run says of itself."""

from pydantic import ValidationError

from chronostat.config import Config
from chronostat.control import controller_files
from chronostat.errors import StoreError
from chronostat.runs.store import RunStore
from chronostat.runs.store.run import METADATA


def is_trained(store: RunStore) -> bool:
    """Whether a run holds a controller, so that its training has ended."""
    return store.holds(f"{controller_files.FOLDER}/{controller_files.METADATA}")


def stored_config(store: RunStore) -> Config:
    """The configuration that a run began with.

    Raises:
        StoreError: it was not written by this version.
    """
    try:
        return Config.model_validate(store.metadata["config"])
    except KeyError:
        problem = "there is none"
    except ValidationError as error:
        problem = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    raise StoreError(
        f"the configuration in {store.folder / METADATA} cannot be used: {problem}; it was not written by this version "
        "of chronostat"
    )
