"""The directory of a controller: what ``controller.json`` says, and the tensors of its policy beside that."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chronostat.config import Config
from chronostat.errors import ChronostatError, StoreError
from chronostat.evidence.linear import Floats
from chronostat.files import disk_errors, write_whole
from chronostat.records import Budget, Conditions, KnobValue, LatencyMetric
from chronostat.tensors import read_tensors, tensors_content

METADATA = "controller.json"
FOLDER = "controller"  # in the directory of a run


class ControllerMetadata(BaseModel):
    """What ``controller.json`` says: whom a controller is for, how it was trained, how its budgets are read.

    Attributes:
        levels: of each knob, the full one first.
        pruned: combinations of them that are not in the action space, with the reason for each.
        metric: the latency that budgets limit.
        full_ms: median of that latency at ``full``, as it was calibrated last; budgets in ms are read against it.
        learner: its name.
        config: of the run that trained it; its sections model and measure are those of the last calibration.
        budgets: those of the training.
        model: where the model came from, for people.
        model_fingerprint: of the only model it may be used with.
        conditions: under which it was trained, or calibrated last.
        executions: measured ones that it learned from.
        taken_out: settings that it never chooses, because they kept failing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels: Mapping[str, tuple[KnobValue, ...]]
    metric: LatencyMetric
    full_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    learner: str
    config: Config
    budgets: tuple[Budget, ...]
    model: str
    model_fingerprint: str
    conditions: Conditions
    executions: int
    taken_out: tuple[str, ...] = ()
    pruned: Mapping[str, str] = Field(default_factory=dict)


class SavedController(BaseModel):
    """The content of ``controller.json``; the digest holds it together with the tensors beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    controller: ControllerMetadata
    prompt_width: int
    policy_sha256: str


def write_controller(
    folder: Path, metadata: ControllerMetadata, *, prompt_width: int, policy: Mapping[str, Floats]
) -> None:
    """Write the directory; the controller that was there before is whole until the new one is.

    Raises:
        StoreError: it cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    content = tensors_content(policy)
    digest = _digest(content)
    tensors = _policy_path(folder, digest)
    write_whole(tensors, content)
    saved = SavedController(controller=metadata, prompt_width=prompt_width, policy_sha256=digest)
    write_whole(folder / METADATA, f"{saved.model_dump_json(indent=2)}\n".encode())
    with disk_errors(folder):
        for earlier in {*folder.glob("policy-*.safetensors"), *folder.glob(".policy-*.tmp")} - {tensors}:
            earlier.unlink()


def read_controller(folder: Path) -> tuple[SavedController, dict[str, Floats]]:
    """What ``write_controller`` wrote: what it says, and the tensors of its policy.

    Raises:
        StoreError: the directory holds no controller, or a damaged one.
    """
    path = folder / METADATA
    if not path.is_file():
        raise StoreError(f"{folder} holds no controller ({METADATA} is missing); name the controller folder of a run")
    try:
        saved = SavedController.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, ChronostatError) as error:
        raise StoreError(
            f"cannot read {path}: {_first_problem(error)}; it was not written by this version of chronostat, or is "
            "damaged: train a controller with this one (chronostat train), or decide with the version that wrote it"
        ) from error
    policy = _policy_path(folder, saved.policy_sha256)
    tensors = read_tensors(policy)
    if _digest(policy.read_bytes()) != saved.policy_sha256:
        raise StoreError(f"{policy} was changed: it is not what {METADATA} beside it names; put back the whole folder")
    return saved, tensors


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def _policy_path(folder: Path, sha256: str) -> Path:
    """Where the tensors of a policy are, by the digest of their file."""
    return folder / f"policy-{sha256[:12]}.safetensors"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
