"""What the verbs of the command line do, once their arguments are parsed."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from chronostat.config import Config, overridden
from chronostat.console import Bars, survey_table, verdict_table
from chronostat.control.controller import load_controller
from chronostat.data.demo import DemoTask
from chronostat.data.jsonl import load_images
from chronostat.data.samples import Sample
from chronostat.errors import ConfigError, StoreError
from chronostat.execution import SampleRequest, request_for
from chronostat.models.load import Vlm
from chronostat.records import Setting
from chronostat.report import write_picture, write_report
from chronostat.session import Material, begin, load_model, reopen
from chronostat.store import RunStore, Validation
from chronostat.store.atomic import write_whole
from chronostat.survey import survey
from chronostat.training import CONTROLLER, JUDGED_SETTINGS
from chronostat.training import train as run_training
from chronostat.validation import validate as run_validation

disable_progress_bar()  # a bar for a load that takes a second; only the command line decides what is shown


def demo(config: Config, folder: Path, command: str, out: Console) -> None:
    """Train, validate and report in one process."""
    out.print(f"Chronostat runs its main job in {folder}: at most 8 minutes. It reads no earlier run.")
    with begin(config, run_dir=folder, command=command, progress=Bars(out)) as session:
        controller = run_training(session)
        verdict = run_validation(session, controller)
        session.store.compact()
    _say_verdict(verdict, out)
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
    if store.holds(f"{CONTROLLER}/controller.json"):
        raise StoreError(f"{folder} has finished training; next: chronostat validate {folder}")
    with reopen(store, config=_stored_config(store), progress=Bars(out)) as session:
        run_training(session)
        session.store.compact()
    _say_trained(folder, out)


def validate(run: Path, to: Path | None, overrides: Sequence[str], command: str, out: Console) -> None:
    """The verdict on a trained controller."""
    store = RunStore.open(run)
    config = _with_overrides(_stored_config(store), overrides)
    if not (run / CONTROLLER).is_dir():
        raise StoreError(f"{run} holds no controller yet; continue it with: chronostat train --resume {run}")
    if to is not None:
        store = RunStore.create(to, {**store.facts, "command": command, "trained_in": str(run), "phases": {}})
        shutil.copytree(run / CONTROLLER, to / CONTROLLER)
    elif store.trials("select") or store.trials("test"):
        raise StoreError(
            f"{run} has been validated: its test split is judged once; for another verdict name a new run with --to DIR"
        )
    with reopen(store, config=config, progress=Bars(out)) as session:
        vlm = session.material.vlm
        controller = load_controller(store.folder / CONTROLLER, vlm.model, vlm.processor)
        verdict = run_validation(session, controller)
        session.store.compact()
    _say_verdict(verdict, out)
    report(store.folder, out)


def report(folder: Path, out: Console) -> None:
    """The page of a run, and its picture once there is a verdict."""
    store = RunStore.open(folder)
    out.print(f"report: {write_report(store)}")
    if store.holds("validation.json"):
        out.print(f"picture: {write_picture(store, folder / 'report.svg')}")


def forecast(config: Config, out: Console) -> None:
    """How many executions a run takes and how long, from one sample executed under every setting."""
    material = Material.load(config)
    vlm, space, samples = material.vlm, material.space, material.dataset.split("train")
    request = request_for(samples[0], vlm.processor, None)
    probed = survey(vlm, request, space.settings, repeats=1, max_new_tokens=config.measure.max_new_tokens)
    execution_s = sum(e.request_ms or 0.0 for runs in probed.executions.values() for e in runs) / len(space) / 1e3
    validation = config.validation
    table = Table("phase", "time box (s)", "about how many executions")
    boxes = {
        "calibrate": config.train.calibration_seconds,
        "train": config.train.seconds,
        "select": validation.select_seconds,
    }
    for phase, seconds in boxes.items():
        table.add_row(phase, f"{seconds:.0f}", f"{seconds / execution_s:,.0f}")
    judged = validation.samples * JUDGED_SETTINGS
    table.add_row("test", f"{min(validation.seconds, judged * execution_s):.0f}", f"{judged:,}")
    out.print(f"{len(space)} settings; one execution takes about {1e3 * execution_s:.0f} ms (measured, one sample).")
    for reason in material.absent.values():
        out.print(f"absent: {reason}", markup=False)
    out.print(table)


def measure(
    config: Config,
    images: Sequence[Path],
    prompt: str | None,
    settings: Sequence[str],
    repeats: int,
    json_file: Path | None,
    out: Console,
) -> None:
    """The stages of one request under some settings."""
    wanted = list(dict.fromkeys(Setting.parse(text) for text in settings))
    vlm = load_model(config)
    request = _request(vlm, images, prompt, own_model=config.model.path is not None)
    measured = survey(vlm, request, wanted, repeats=repeats, max_new_tokens=config.measure.max_new_tokens)
    out.print(survey_table(measured))
    if json_file is not None:
        write_whole(json_file, (json.dumps(measured.to_json(), indent=2) + "\n").encode())
        out.print(f"every repeat: {json_file}")


def _request(vlm: Vlm, images: Sequence[Path], prompt: str | None, *, own_model: bool) -> SampleRequest:
    if images and prompt:
        sample = Sample(
            id="request", split="test", prompt=prompt, references=(), load_images=lambda: load_images(images)
        )
        return request_for(sample, vlm.processor, None)
    if images or prompt or own_model:
        raise ConfigError("give --image FILE and --prompt TEXT together; without both, the bundled model is measured")
    return request_for(DemoTask().split("validation")[0], vlm.processor, None)


def _stored_config(store: RunStore) -> Config:
    return Config.model_validate(store.facts["config"])


def _with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Only how it is judged may differ from how it was trained."""
    other = [override for override in overrides if not override.startswith("validation.")]
    if other:
        raise ConfigError(
            f"--set {other[0]}: validate takes keys of the section validation only; the rest is the run's"
        )
    return overridden(config, overrides)


def _say_trained(folder: Path, out: Console) -> None:
    out.print(f"controller: {folder / CONTROLLER}")
    out.print(f"next: chronostat validate {folder}")


def _say_verdict(verdict: Validation, out: Console) -> None:
    out.print(verdict_table(verdict))
    counted, differ = verdict.counted, verdict.kinds_differ
    if counted is not None:
        out.print(f"validation: {counted.executions:,} stored executions, {counted.generate_calls:,} generate() calls")
    if differ is not None:
        settings = len(set(differ.most_chosen.values()))
        out.print(
            f"{differ.budget}: the most chosen setting differs between kinds of question ({settings} different ones; "
            f"permutation test of independence p = {differ.p_value:.4f}); the controller never sees the kind"
        )
