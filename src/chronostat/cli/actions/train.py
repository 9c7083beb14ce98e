"""What chronostat train does: a new controller, the rest of one, or a forecast."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from chronostat.cli.console import Bars
from chronostat.config import Config
from chronostat.control.controller_files import FOLDER
from chronostat.errors import StoreError
from chronostat.records import Conditions
from chronostat.runs.plan import executions_of_a_trial, planned_executions
from chronostat.runs.session import begin, reopen
from chronostat.runs.store import RunStore
from chronostat.runs.stored import is_trained, stored_config
from chronostat.runs.training import train as run_training
from chronostat.runs.workload import Workload, load_both
from chronostat.studies.forecast import Probe, probe


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
    """What a run costs, from one sample of each size of image executed under every setting."""
    dataset, vlm = load_both(config)
    workload = Workload.of(config, vlm, dataset)
    probed = probe(workload, dataset.split("train"), vlm)
    settings, execution_s = len(workload.space), probed.execution_s
    out.print(f"{settings} settings; one execution takes about {1e3 * execution_s:.0f} ms (measured, one sample).")
    if len(probed.sizes) > 1:
        for size in probed.sizes:
            out.print(f"{size.share:.0%} like {size.width} x {size.height} px: {size.request_ms:.0f} ms")
    if probed.eager_because is not None:
        out.print(f"the model runs eagerly, not by the engine 'graph': {probed.eager_because}")
    for told in filter(None, (workload.decoding.note, *(f"absent: {reason}" for reason in workload.absent.values()))):
        out.print(told)
    out.print(_cost_table(workload, probed, vlm.model.device.type))


def _cost_table(workload: Workload, probed: Probe, device: str) -> Table:
    """Executions, time and disk of each phase."""
    table = Table("phase")
    for head in ("about how many executions", "seconds", f"{'GPU' if device == 'cuda' else 'CPU'} hours", "GB on disk"):
        table.add_column(head, justify="right")
    execution_s, whole, whole_bytes = probed.execution_s, 0, 0.0
    for phase, executions in planned_executions(workload).items():
        stored = probed.stored_bytes(executions, per_trial=executions_of_a_trial(workload, phase))
        whole, whole_bytes = whole + executions, whole_bytes + stored
        table.add_row(phase, *_cost_cells(executions, executions * execution_s, stored))
    table.add_row("together", *_cost_cells(whole, whole * execution_s, whole_bytes))
    return table


def _cost_cells(executions: int, seconds: float, stored_bytes: float) -> tuple[str, ...]:
    return f"{executions:,}", f"{seconds:.0f}", f"{seconds / 3600:.2f}", f"{stored_bytes / 1e9:.3f}"
