"""What chronostat validate does: the verdict on a trained controller."""

import shutil
from collections.abc import Generator, Sequence
from pathlib import Path

from rich.console import Console

from chronostat.cli.actions.report import report
from chronostat.cli.console import Bars, verdict_table
from chronostat.config import Config, overridden, refuse_others
from chronostat.control.controller import Controller, load_controller
from chronostat.control.controller_files import FOLDER
from chronostat.errors import StoreError
from chronostat.files import disk_errors
from chronostat.report.text import forecast_text, learned_share_text, noise_floor_text, points, unmeetable_text
from chronostat.runs.session import Session, begin_with, reopen_with, require_comparable
from chronostat.runs.store import RunStore, Validation
from chronostat.runs.store.run import VALIDATION
from chronostat.runs.stored import is_trained, stored_config
from chronostat.runs.workload import Workload
from chronostat.validation import validate as run_validation

SIGNIFICANT = 0.01  # of the test whether choices depend on the kind of question


def validate(
    run: Path, to: Path | None, data: Path | None, overrides: Sequence[str], command: str, out: Console
) -> None:
    """The verdict on a trained controller."""
    trained = RunStore.open(run)
    config = _with_overrides(stored_config(trained, data), overrides)
    if not is_trained(trained):
        raise StoreError(f"{run} holds no controller yet; continue it with: chronostat train --resume {run}")
    if to is None:
        _require_unjudged(trained)
    workload = Workload.load(config)
    with workload.stabilised():
        require_comparable(workload, trained)
    progress = Bars(out)
    if to is None:
        opened = reopen_with(workload, trained, progress=progress)
    else:
        known = {
            key: trained.metadata[key] for key in ("full_ms", "budget_range", "forecast") if key in trained.metadata
        }
        opened = begin_with(workload, run_dir=to, command=command, progress=progress, trained_in=str(run), **known)
    with opened as session:
        if to is not None:
            _copy_controller(run, to)
        judge_and_say(session, load_controller(run / FOLDER, workload.vlm.model, workload.vlm.processor), out)
        session.store.update_metadata(config=config.model_dump(mode="json"))  # how it was judged
    report(to or run, out)


def _require_unjudged(store: RunStore) -> None:
    """Accept a run whose validation has not begun."""
    if store.holds(VALIDATION):
        raise StoreError(
            f"{store.folder} has been validated: its test split is judged once; for another verdict name a new run "
            "with --to DIR"
        )
    if store.trials("test"):
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


def judge_and_say(session: Session, controller: Controller, out: Console) -> None:
    """Judge a controller in a session, and print the verdict with what should be known beside it."""
    verdict = run_validation(session, controller)
    session.store.compact()
    _say_verdict(session, verdict, out)
    for line in _shortcomings(session, verdict):
        out.print(line)


def _shortcomings(session: Session, verdict: Validation) -> Generator[str]:
    """What a reader of the verdict should know that the table does not say."""
    validation = session.config.validation
    judged = len(session.store.trials("test"))
    asked = min(validation.samples, len(session.samples("test")))
    if judged < asked:
        yield f"judged on {judged} of {asked} test samples: the time box ended before"
    if judged > verdict.samples:
        yield f"{judged - verdict.samples} of {judged} judged samples are left out: not every policy could be measured"
    trials = session.store.trials("test")
    failed = sum(execution.invalid is not None for trial in trials for execution in trial.executions)
    off = {b: s for b, each in verdict.selection.items() if (s := each.shortfall or 0.0) > validation.margin}
    if off:
        said = ", ".join(f"{points(shortfall)} points under {budget}" for budget, shortfall in off.items())
        yield f"the truly best fixed setting may be better than the one that was chosen: {said} (expected)"
    for score in verdict.scores:
        if score.policy == "controller" and score.unmeetable:
            yield f"{score.budget}: {unmeetable_text(score)}"
    if failed:
        yield f"{failed} executions of the validation failed; the report says why"


def _with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Only how it is judged may differ from how it was trained."""
    refuse_others(
        overrides, ("validation.",), "validate takes keys of the section validation only; the rest is the run's"
    )
    return overridden(config, overrides)


def _say_verdict(session: Session, verdict: Validation, out: Console) -> None:
    out.print(verdict_table(verdict))
    if share := learned_share_text(verdict.selection):
        out.print(f"learned share: {share}")
    if forecast := session.store.metadata.get("forecast"):
        out.print(f"forecast of latency: {forecast_text(forecast, verdict.noise)}")
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
