"""demo, train, validate and report: the loop from a configuration to a verdict."""

import math
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from chronostat.config import Config, overridden, refuse_others
from chronostat.console import Bars, verdict_table
from chronostat.control.controller import FACTS as CONTROLLER_FACTS
from chronostat.control.controller import FOLDER, Controller, load_controller
from chronostat.errors import StoreError
from chronostat.execution import request_for
from chronostat.files import disk_errors
from chronostat.material import Material, load_data, load_model
from chronostat.records import Conditions, Phase
from chronostat.report import write_picture, write_report
from chronostat.report.text import noise_floor_text
from chronostat.session import Session, begin, begin_with, reopen, reopen_with, require_like
from chronostat.store import RunStore, Validation
from chronostat.store.run import FACTS, VALIDATION
from chronostat.survey import Arm, Plan, repeated
from chronostat.training import JUDGED_SETTINGS, training_box_s
from chronostat.training import train as run_training
from chronostat.validation import judged_budgets
from chronostat.validation import validate as run_validation

SIGNIFICANT = 0.01  # of the test whether choices depend on the kind of question


def demo(config: Config, folder: Path, command: str, out: Console) -> None:
    """Train, validate and report in one process."""
    limit = "" if config.seconds is None else f": at most {math.ceil(config.seconds / 60)} minutes"
    out.print(f"Chronostat runs its main job in {folder}{limit}. It reads no earlier run.")
    with begin(config, run_dir=folder, command=command, progress=Bars(out)) as session:
        budgets = judged_budgets(session)  # what cannot be judged is refused before minutes of training
        _judge(session, run_training(session, budgets), out)
    report(folder, out)


def train(config: Config, folder: Path, command: str, out: Console) -> None:
    """A new controller."""
    with begin(config, run_dir=folder, command=command, progress=Bars(out)) as session:
        run_training(session)
        session.store.compact()
    _say_trained(folder, out)


def resume(folder: Path, out: Console) -> None:
    """The rest of a training run that ended early."""
    store = RunStore.open(folder)
    if _is_trained(store):
        raise StoreError(f"{folder} has finished training; next: chronostat validate {folder}")
    if "ranking" in store.facts:
        raise StoreError(
            f"{folder} holds a ranking of blocks; continue it with: chronostat rank-blocks --resume {folder}"
        )
    with reopen(store, config=stored_config(store), progress=Bars(out)) as session:
        for told in Conditions.from_json(store.facts["conditions"]).differences(session.conditions)[1]:
            out.print(f"this run began elsewhere, its latencies are compared all the same: {told}")
        run_training(session)
        session.store.compact()
    _say_trained(folder, out)


def validate(run: Path, to: Path | None, overrides: Sequence[str], command: str, out: Console) -> None:
    """The verdict on a trained controller."""
    trained = RunStore.open(run)
    config = _with_overrides(stored_config(trained), overrides)
    if not _is_trained(trained):
        raise StoreError(f"{run} holds no controller yet; continue it with: chronostat train --resume {run}")
    if to is None:
        _require_unjudged(trained)
    material = Material.load(config)
    with material.steady():
        require_like(material, trained)
    progress = Bars(out)
    if to is None:
        opened = reopen_with(material, trained, progress=progress)
    else:
        known = {key: trained.facts[key] for key in ("full_ms", "budget_range") if key in trained.facts}
        opened = begin_with(material, run_dir=to, command=command, progress=progress, trained_in=str(run), **known)
    with opened as session:
        if to is not None:
            _copy_controller(run, to)
        _judge(session, load_controller(run / FOLDER, material.vlm.model, material.vlm.processor), out)
        session.store.update_facts(config=config.model_dump(mode="json"))  # how it was judged
    report(to or run, out)


def _require_unjudged(store: RunStore) -> None:
    """Accept a run whose validation has not begun."""
    if store.holds(VALIDATION):
        raise StoreError(
            f"{store.folder} has been validated: its test split is judged once; for another verdict name a new run "
            "with --to DIR"
        )
    if store.trials("select") or store.trials("test"):
        raise StoreError(
            f"the validation of {store.folder} was interrupted, and its samples are judged once; for a verdict name a "
            "new run with --to DIR"
        )


def _copy_controller(run: Path, to: Path) -> None:
    with disk_errors(to / FOLDER):
        try:
            shutil.copytree(run / FOLDER, to / FOLDER, dirs_exist_ok=True)
        except shutil.Error as error:  # all that could not be copied
            raise OSError(str(error)) from error


def _judge(session: Session, controller: Controller, out: Console) -> None:
    verdict = run_validation(session, controller)
    session.store.compact()
    _say_verdict(verdict, out)
    for line in _shortcomings(session, verdict):
        out.print(line)


def _shortcomings(session: Session, verdict: Validation) -> Generator[str]:
    """What a reader of the verdict should know that the table does not say."""
    validation = session.config.validation
    judged = len(session.store.trials("test"))
    asked = min(validation.samples, len(session.samples("test")))
    if judged < asked:
        yield f"judged on {judged} of {asked} test samples: the time box of {validation.seconds:.0f} s ended before"
    if judged > verdict.samples:
        yield f"{judged - verdict.samples} of {judged} judged samples are left out: not every policy could be measured"
    trials = [*session.store.trials("select"), *session.store.trials("test")]
    failed = sum(execution.invalid is not None for trial in trials for execution in trial.executions)
    if failed:
        yield f"{failed} executions of the validation failed; the report says why"


def report(folder: Path, out: Console) -> None:
    """The page of a run, and its picture once there is a verdict."""
    store = RunStore.open(folder)
    out.print(f"report: {write_report(store)}")
    if store.holds(VALIDATION):
        out.print(f"picture: {write_picture(store, folder / 'report.svg')}")


def forecast(config: Config, out: Console) -> None:
    """How many executions a run takes and how long, from one sample executed under every setting."""
    dataset = load_data(config)
    vlm = load_model(config)
    material = Material.of(config, vlm, dataset)
    request = request_for(dataset.split("train")[0], vlm.processor, None)
    arms = [Arm(name=str(s), vlm=vlm, setting=s, requests=[request]) for s in material.space.settings]
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
    for phase, (box_s, most) in _limits(config, len(material.space), execution_s).items():
        executions = min(box_s / execution_s, most)
        whole_s += executions * execution_s
        table.add_row(phase, f"{executions:,.0f}", f"{executions * execution_s:.0f}")
    table.add_row("together", f"{whole_s / execution_s:,.0f}", f"{whole_s:.0f}")
    out.print(
        f"{len(material.space)} settings; one execution takes about {1e3 * execution_s:.0f} ms (measured, one sample)."
    )
    for told in filter(None, (material.decoding.note, *(f"absent: {reason}" for reason in material.absent.values()))):
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


def _is_trained(store: RunStore) -> bool:
    return store.holds(f"{FOLDER}/{CONTROLLER_FACTS}")


def stored_config(store: RunStore) -> Config:
    """The configuration that a run began with.

    Raises:
        StoreError: it was not written by this version.
    """
    try:
        return Config.model_validate(store.facts["config"])
    except KeyError:
        problem = "there is none"
    except ValidationError as error:
        problem = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    raise StoreError(
        f"the configuration in {store.folder / FACTS} cannot be used: {problem}; it was not written by this version of "
        "chronostat"
    )


def _with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Only how it is judged may differ from how it was trained."""
    refuse_others(
        overrides, ("validation.",), "validate takes keys of the section validation only; the rest is the run's"
    )
    return overridden(config, overrides)


def _say_trained(folder: Path, out: Console) -> None:
    out.print(f"controller: {folder / FOLDER}")
    out.print(f"next: chronostat validate {folder}")


def _say_verdict(verdict: Validation, out: Console) -> None:
    out.print(verdict_table(verdict))
    counted, differ, noise = verdict.counted, verdict.kinds_differ, verdict.noise
    if noise is not None:
        out.print(f"noise floor: {noise_floor_text(noise)}")
    if counted is not None:
        out.print(f"validation: {counted.executions:,} stored executions, {counted.generate_calls:,} generate() calls")
    if differ is not None:
        settings = len(set(differ.most_chosen.values()))
        seen = "depend" if differ.p_value < SIGNIFICANT and settings > 1 else "were not seen to depend"
        out.print(
            f"{differ.budget}: the chosen settings {seen} on the kind of question, which the controller never sees "
            f"(permutation test p = {differ.p_value:.4f}; {settings} different settings are the most chosen of a kind)"
        )
