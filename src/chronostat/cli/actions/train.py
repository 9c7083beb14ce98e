"""What chronostat train does: a new controller, the rest of one, or a forecast."""

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chronostat.cli.console import Bars
from chronostat.config import Config
from chronostat.control.controller_files import FOLDER
from chronostat.errors import StoreError
from chronostat.execution.execute import request_for
from chronostat.records import Conditions, Phase
from chronostat.runs.session import begin, reopen
from chronostat.runs.store import RunStore
from chronostat.runs.stored import is_trained, stored_config
from chronostat.runs.training import JUDGED_SETTINGS, training_box_s
from chronostat.runs.training import train as run_training
from chronostat.runs.workload import Workload, load_both
from chronostat.studies.survey import Arm, Plan, repeated


def train(config: Config, folder: Path, command: str, out: Console) -> None:
    """A new controller."""
    with begin(config, run_dir=folder, command=command, progress=Bars(out)) as session:
        run_training(session)
        session.store.compact()
    _say_trained(folder, out)


def resume(folder: Path, data: Path | None, out: Console) -> None:
    """The rest of a training run that ended early."""
    store = RunStore.open(folder)
    if is_trained(store):
        raise StoreError(f"{folder} has finished training; next: chronostat validate {folder}")
    if "ranking" in store.metadata:
        raise StoreError(
            f"{folder} holds a ranking of blocks; continue it with: chronostat rank-blocks --resume {folder}"
        )
    with reopen(store, config=stored_config(store, data), progress=Bars(out)) as session:
        for told in Conditions.from_json(store.metadata["conditions"]).differences(session.conditions)[1]:
            out.print(f"this run began elsewhere, its latencies are compared all the same: {told}")
        run_training(session)
        session.store.compact()
    _say_trained(folder, out)


def _say_trained(folder: Path, out: Console) -> None:
    out.print(f"controller: {folder / FOLDER}")
    out.print(f"next: chronostat validate {folder}")


def forecast(config: Config, out: Console) -> None:
    """How many executions a run takes and how long, from one sample executed under every setting."""
    dataset, vlm = load_both(config)
    workload = Workload.of(config, vlm, dataset)
    request = request_for(dataset.split("train")[0], vlm.processor, None)
    arms = [Arm(name=str(s), vlm=vlm, setting=s, requests=[request]) for s in workload.space.settings]
    measure = config.measure
    probed = repeated(
        arms, Plan(repeats=1, max_new_tokens=measure.max_new_tokens, seed=config.seed, sample=measure.sample)
    )
    requests_ms = [shot.request_ms for shot in probed]
    execution_s = sum(requests_ms) / len(requests_ms) / 1e3
    table = Table("phase")
    for head in ("about how many executions", "seconds"):
        table.add_column(head, justify="right")
    whole_s = 0.0
    for phase, (box_s, most) in _limits(config, len(workload.space), execution_s).items():
        executions = min(box_s / execution_s, most)
        whole_s += executions * execution_s
        table.add_row(phase, f"{executions:,.0f}", f"{executions * execution_s:.0f}")
    table.add_row("together", f"{whole_s / execution_s:,.0f}", f"{whole_s:.0f}")
    out.print(
        f"{len(workload.space)} settings; one execution takes about {1e3 * execution_s:.0f} ms (measured, one sample)."
    )
    for told in filter(None, (workload.decoding.note, *(f"absent: {reason}" for reason in workload.absent.values()))):
        out.print(told)
    out.print(table)


def _limits(config: Config, settings: int, execution_s: float) -> dict[Phase, tuple[float, float]]:
    """Of each phase the most seconds and the most executions."""
    train, validation = config.train, config.validation
    return {
        "calibrate": (
            train.calibration_seconds,
            math.inf if train.calibration_samples is None else train.calibration_samples * settings,
        ),
        "train": (
            training_box_s(config, train.calibration_seconds, execution_s),
            min(
                math.inf if train.trials is None else train.trials * train.group_size * train.repeats,
                math.inf if train.executed_seconds is None else train.executed_seconds / execution_s,
            ),
        ),
        "select": (validation.select_seconds, validation.select_samples * settings),
        "test": (validation.seconds, validation.samples * JUDGED_SETTINGS),
    }
