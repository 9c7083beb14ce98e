"""From a configuration to a controller: calibrate, then propose, execute, reward and learn until the time box ends."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from chronostat.config import Config, TrainConfig
from chronostat.control.calibration import Calibration, calibrate
from chronostat.control.controller import Controller
from chronostat.control.controller_files import FOLDER, ControllerMetadata
from chronostat.control.failures import Failures
from chronostat.control.learners import learner_by_name
from chronostat.control.trainer import Trainer
from chronostat.errors import KnobError, StoreError
from chronostat.records import Budget
from chronostat.runs.beginning import what_full_answered
from chronostat.runs.knob_check import require_gradients
from chronostat.runs.session import Session, record_check
from chronostat.runs.store.run import CHECKPOINT
from chronostat.tensors import read_tensors, write_tensors

JUDGED_SETTINGS = 11  # about how many distinct settings a judged sample runs under
_LEAST_TRAINING_S = 10.0
_CHOICES = 16  # that the controller's own time is taken from before training
_SPARE = 1.15  # a machine that slows down later shall still judge all its samples


@dataclass(frozen=True, kw_only=True)
class _Start:
    """Where training begins: after the calibration, or at a checkpoint."""

    trainer: Trainer
    calibration: Calibration
    trained_s: float


def train(session: Session, judged: Sequence[Budget] = ()) -> Controller:
    """Calibrate, train until the time box ends, and save the controller in the run; continues a killed run.

    Args:
        session: at work on the run.
        judged: budgets that the controller will have to keep.

    Raises:
        BudgetError: by the calibration no setting can meet one of ``judged``; there is no training then.
        MeasurementError: a setting could not be measured at all.
        StoreError: the run cannot be written, or its checkpoint cannot be read.
    """
    start = _continue(session) if (session.store.folder / CHECKPOINT).is_file() else _begin(session)
    _require_meetable(session, start.trainer, judged)
    _loop(session, start)
    controller = _frozen(session, start)
    controller.save(session.store.folder / FOLDER)
    return controller


def _begin(session: Session) -> _Start:
    seconds = session.config.train.calibration_seconds
    samples = session.samples("train")[: session.config.train.calibration_samples]
    with session.phase("calibrate", seconds):
        calibration = calibrate(
            session.runner, session.space, samples, session.metric, seconds, session.progress.advance
        )
    for told in what_full_answered(session.store.trials("calibrate"), session.space.full):
        session.progress.warn(told)
    calibration = replace(calibration, controller_ms=_choosing_ms(session, calibration))
    session.follow_drift(calibration.full_ms)
    trainer = _trainer(session, calibration)
    for position in trainer.failures.taken_out:
        session.take_out(session.space.settings[position], trainer.failures.reasons[position])
    low, high = trainer.budgets[0].fraction, max(budget.fraction for budget in trainer.budgets)
    session.store.update_metadata(
        full_ms={"calibrate": calibration.full_ms}, budget_range=[low, high], calibration=_metadata(calibration)
    )
    start = _Start(trainer=trainer, calibration=calibration, trained_s=0.0)
    _save_checkpoint(session, start, 0.0)  # before the first trial: stored trials belong to this calibration's budgets
    return start


def _choosing_ms(session: Session, calibration: Calibration) -> float:
    """What the controller's own look and draw take, on average over some requests; nothing is executed.

    Settings that training hardly ever draws keep the latency of the calibration, and a budget limits both together.
    """
    trainer, generator = _trainer(session, calibration), torch.Generator().manual_seed(session.config.seed)
    took_ms: list[float] = []
    for trial_input in session.samples("train")[: _CHOICES + 1]:
        request = session.runner.request(trial_input)
        start_ns = session.clock.host_ns()
        trainer.learner.propose(session.observer(request), trainer.budgets[0], trainer.group_size, generator)
        took_ms.append(session.clock.host_ms_since(start_ns))
    return float(np.mean(took_ms[1:] or took_ms))  # the first one pays for what later ones find ready


def _require_meetable(session: Session, trainer: Trainer, budgets: Sequence[Budget]) -> None:
    request = session.runner.request(session.samples("validation")[0])
    for budget in budgets:
        trainer.learner.decide(session.observer(request), budget)


def _continue(session: Session) -> _Start:
    path = session.store.folder / CHECKPOINT
    tensors, numbers = read_tensors(path)
    try:
        calibration = TypeAdapter(Calibration).validate_python(numbers["calibration"])
        trainer = _trainer(session, calibration)
        trainer.resume(tensors, numbers["trainer"])
        trained_s = float(numbers["trained_s"])
    except (KeyError, ValueError, RuntimeError) as error:  # of other names, values or shapes
        raise StoreError(
            f"cannot continue from {path}: {error}; it was not written by this version of chronostat, begin a new run"
        ) from error
    session.follow_drift(calibration.full_ms)
    trainer.replay(session.store.trials("train"))
    return _Start(trainer=trainer, calibration=calibration, trained_s=trained_s)


def _metadata(calibration: Calibration) -> dict[str, Any]:
    """For ``run.json``: null where there is no number."""
    known = [fraction if isfinite(fraction) else None for fraction in calibration.fractions]
    return {
        "full_ms": calibration.full_ms,
        "fractions": known,
        "samples": calibration.samples,
        "controller_ms": calibration.controller_ms,
    }


def _trainer(session: Session, calibration: Calibration) -> Trainer:
    config = session.config
    budgets = calibration.budgets()
    learner = learner_by_name(config.train.learner)(
        session.space, session.observer.size, config, config.seed, calibration.charged, budgets
    )
    failures = Failures(session.space, calibration.streaks, calibration.reasons)
    learner.take_out(failures.taken_out)
    return Trainer(
        runner=session.runner,
        space=session.space,
        observer=session.observer,
        learner=learner,
        budgets=budgets,
        metric=session.metric,
        full_ms=calibration.full_ms,
        latency=config.train.latency,
        repeats=config.train.repeats,
        group_size=config.train.group_size,
        seed=config.seed,
        keep=session.store.append,
        failures=failures,
        take_out=session.take_out,
    )


def _loop(session: Session, start: _Start) -> None:
    config, runner, trainer = session.config.train, session.runner, start.trainer
    samples = session.samples("train")
    order = np.random.default_rng(session.config.seed).permutation(len(samples))
    box_s = training_seconds(session)
    with session.phase("train", box_s):
        begin_s = runner.elapsed_s - start.trained_s
        saved_s = start.trained_s
        updated = False
        while not _is_over(trainer, config, spent_s := runner.elapsed_s - begin_s, box_s):
            step = trainer.step(samples[int(order[trainer.next_step % len(samples)])])
            if step.metrics and not updated:
                _check_heads(session, trainer)
            updated = updated or bool(step.metrics)
            if spent_s - saved_s >= config.checkpoint_every_s:
                _save_checkpoint(session, start, spent_s)
                saved_s = spent_s
            share = max(_done(trainer, config), spent_s / box_s)
            session.progress.advance(share, f"{step.index + 1} trials, quality {step.quality:.2f}")
        _save_checkpoint(session, start, runner.elapsed_s - begin_s)


def _check_heads(session: Session, trainer: Trainer) -> None:
    """After the first update of this process: it reached what chooses the values of each knob."""
    settings = trainer.failures.legal_settings
    try:
        record_check(session.store, gradients=dict(require_gradients(trainer.learner, settings)))
    except KnobError as error:
        record_check(session.store, failed=str(error))
        raise


def _is_over(trainer: Trainer, config: TrainConfig, spent_s: float, box_s: float) -> bool:
    return spent_s >= box_s or _done(trainer, config) >= 1


def _done(trainer: Trainer, config: TrainConfig) -> float:
    """Share of the trials, or of the executed seconds, that the training may have; 0 if it may have any number."""
    trials = trainer.next_step / config.trials if config.trials else 0.0
    executed = trainer.executed_ms / 1e3 / config.executed_seconds if config.executed_seconds else 0.0
    return max(trials, executed)


def training_seconds(session: Session) -> float:
    """Time box of training: what the whole run's box leaves after validation has got its samples.

    The time of an execution is taken from what this process has executed so far.
    """
    elapsed_s = session.runner.elapsed_s
    return training_box_s(session.config, elapsed_s, elapsed_s / max(session.counter.calls, 1))


def training_box_s(config: Config, elapsed_s: float, execution_s: float) -> float:
    """The same from the seconds that have gone by, and those that one execution takes."""
    if config.seconds is None:
        return config.train.seconds
    judging_s = _SPARE * config.validation.samples * JUDGED_SETTINGS * execution_s
    validation_s = config.validation.select_seconds + judging_s
    return min(config.train.seconds, max(config.seconds - elapsed_s - validation_s, _LEAST_TRAINING_S))


def _save_checkpoint(session: Session, start: _Start, trained_s: float) -> None:
    tensors, numbers = start.trainer.state()
    data = {"trainer": numbers, "trained_s": trained_s, "calibration": asdict(start.calibration)}
    write_tensors(session.store.folder / CHECKPOINT, tensors, data)


def _frozen(session: Session, start: _Start) -> Controller:
    """The controller that comes out, held to its mean budgets on requests that were not trained on."""
    trainer = start.trainer
    trainer.learner.settle(session.unseen_observations())
    metadata = ControllerMetadata(
        levels=session.space.levels,
        pruned=session.space.pruned,
        metric=session.metric,
        full_ms=session.full_ms_now(start.calibration.full_ms),
        learner=session.config.train.learner,
        config=session.config,
        latency_means=start.calibration.charged,
        budgets=trainer.budgets,
        model=session.workload.vlm.name,
        model_fingerprint=session.workload.vlm.fingerprint,
        conditions=session.conditions,
        trials=trainer.next_step,
        taken_out=tuple(str(session.space.settings[position]) for position in trainer.failures.taken_out),
    )
    return Controller(learner=trainer.learner, observer=session.observer, metadata=metadata)
