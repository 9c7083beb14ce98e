"""From a configuration to a controller: calibrate, select, train, freeze."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from chronostat.config import Config
from chronostat.control.calibration import calibrated_settings, chances_of, full_ms_of, training_budgets
from chronostat.control.controller import Controller, choosing_ms
from chronostat.control.controller_files import FOLDER, ControllerMetadata
from chronostat.control.failures import Failures
from chronostat.control.learners import Learner, learner_by_name
from chronostat.control.trainer import Trainer
from chronostat.data.samples import Split
from chronostat.errors import KnobError, StoreError
from chronostat.evidence.evidence import Evidence
from chronostat.evidence.linear import Flags
from chronostat.evidence.observation import Observation
from chronostat.execution.trials import TrialInput
from chronostat.policy.frontier import Requests
from chronostat.policy.policy import Policy
from chronostat.policy.scorers import QualityScorer
from chronostat.records import Budget, Trial
from chronostat.runs.beginning import what_full_answered
from chronostat.runs.knob_check import require_gradients
from chronostat.runs.session import Session, executions, record_check

_DRAWS = 100  # of what may be true of quality, kept with the policy
_SELECT_FROM: Split = "validation"


def train(session: Session, judged: Sequence[Budget] = ()) -> Controller:
    """Calibrate, select, train until the executions are used, and save the controller; continues a killed run.

    Whatever is stored already is learned from and not executed again.

    Args:
        session: at work on the run.
        judged: budgets that the controller will have to keep.

    Raises:
        BudgetError: by the calibration no setting can meet one of ``judged``; there is no training then.
        MeasurementError: ``full`` could not be measured.
        StoreError: the run cannot be written, or its stored trials are not of this configuration and data.
    """
    trainer = _calibrated(session)
    _require_meetable(session, trainer, judged)
    _select(session, trainer)
    _begin_learning(session, trainer)
    _draw(session, trainer)
    controller = _frozen(session, trainer)
    controller.save(session.store.folder / FOLDER)
    return controller


def _calibrated(session: Session) -> Trainer:
    """Execute settings on some samples; what they took is what everything else is a fraction of."""
    config, samples = session.config.train, session.samples("train")
    plan = calibrated_settings(session.space, config.calibration_executions, session.config.seed)[: len(samples)]
    stored = session.store.trials("calibrate")
    trials = stored[: len(plan)]
    failures = Failures(session.space)
    for trial in trials:
        failures.add(trial, earlier=True)
    with session.phase("calibrate", executions(sum(map(len, plan)))):
        for index in range(len(trials), len(plan)):
            settings = [s for s in plan[index] if s in failures.legal_settings]
            trial = session.runner.run(
                "calibrate",
                index,
                session.runner.request(samples[index]),
                settings,
                probabilities=chances_of(settings, len(session.space)),
            )
            failures.add(trial)
            trials.append(trial)
            note = f"{index + 1} samples under {len(settings)} settings"
            session.progress.advance((index + 1) / len(plan), note)
    for told in what_full_answered(trials, session.space.full):
        session.progress.warn(told)
    return _trainer(session, trials, earlier=len(stored))


def _trainer(session: Session, calibration: Sequence[Trial], earlier: int) -> Trainer:
    """What has learned from the calibration, whose first ``earlier`` trials are of a process that has ended."""
    config = session.config
    full_ms = full_ms_of(calibration, session.space.full, session.metric)
    session.follow_drift(full_ms)
    trainer = Trainer(
        runner=session.runner,
        space=session.space,
        observer=session.observer,
        evidence=Evidence(session.space, session.unseen(), config.seed),
        metric=session.metric,
        full_ms=full_ms,
        group_size=config.train.group_size,
        seed=config.seed,
        keep=session.store.append,
        failures=Failures(session.space),
        latency=config.train.latency,
        repeats=config.train.repeats,
        take_out=session.take_out,
    )
    for number, trial in enumerate(calibration):
        trainer.absorb(trial, _observed(session, trial, "train"), earlier=number < earlier)
    trainer.evidence.fit()
    forecast = trainer.evidence.forecast()
    fractions = forecast.mean(trainer.evidence.prompts, trainer.evidence.tokens).mean(axis=0)
    session.store.update_metadata(
        full_ms={"calibrate": full_ms},
        calibration={"full_ms": full_ms, "fractions": fractions.tolist(), "samples": len(calibration)},
    )
    return trainer


def _observed(session: Session, trial: Trial, split: Split) -> Observation:
    """What is seen of the sample of a trial that is stored already.

    Raises:
        StoreError: the sample at its place is another one.
    """
    samples = session.samples(split)
    if trial.index >= len(samples) or samples[trial.index].id != trial.sample_id:
        raise StoreError(
            f"the stored {trial.phase} trial {trial.index} is of sample {trial.sample_id!r}, which is not sample "
            f"{trial.index} of split {split} now; resume with the same config and data"
        )
    return session.observe(samples[trial.index])


def _require_meetable(session: Session, trainer: Trainer, budgets: Sequence[Budget]) -> None:
    policy = _policy(session, trainer)
    observation = session.observe(session.samples(_SELECT_FROM)[0])
    for budget in budgets:
        policy.decide(observation, budget, 0.5)


def _select(session: Session, trainer: Trainer) -> None:
    """Execute settings drawn alike on validation samples, so that the fixed ones are known that must be beaten."""
    wanted, samples = session.config.train.select_executions, session.samples(_SELECT_FROM)
    done = 0
    stored = session.store.trials("select")
    for trial in stored:
        trainer.absorb(trial, _observed(session, trial, _SELECT_FROM), earlier=True)
        done += trial.asked
    with session.phase("select", executions(wanted)):
        for index in range(len(stored), len(samples)):
            if done >= wanted:
                break
            done += trainer.select(index, samples[index]).asked
            session.progress.advance(done / wanted, f"{index + 1} samples")
    trainer.evidence.fit()


def _begin_learning(session: Session, trainer: Trainer) -> None:
    config, evidence = session.config, trainer.evidence
    budgets = training_budgets(evidence.forecast(), Requests(prompts=evidence.prompts, tokens=evidence.tokens))
    learner = learner_by_name(config.train.learner)(session.space, evidence, config, budgets, config.seed)
    trainer.begin(learner, budgets)
    session.store.update_metadata(budget_range=[budgets[0].fraction, max(budget.fraction for budget in budgets)])


def step_inputs(session: Session) -> Callable[[int], TrialInput]:
    """What each step of the training is about: the samples in an order that is drawn, again and again."""
    samples = session.samples("train")
    order = np.random.default_rng(session.config.seed).permutation(len(samples))
    return lambda step: samples[int(order[step % len(samples)])]


def _draw(session: Session, trainer: Trainer) -> None:
    """The training: the learner draws settings, they are executed, and it learns."""
    config, of_step = session.config.train, step_inputs(session)
    known = {step.index for step in session.store.steps()}
    keep = trainer.keep
    trainer.keep = lambda step: None if step.index in known else keep(step)
    for trial in session.store.trials("train"):
        trainer.relearn(trial, of_step(trainer.next_step))
    with session.phase("train", executions(config.executions)):
        begin_s, updated = session.runner.elapsed_s, False
        while trainer.executions < config.executions:
            if config.seconds is not None and session.runner.elapsed_s - begin_s >= config.seconds:
                break
            step = trainer.step(of_step(trainer.next_step))
            if step.metrics and not updated:
                _check_heads(session, trainer)
                updated = True
            note = f"{step.index + 1} trials, quality {step.quality:.2f}"
            session.progress.advance(trainer.executions / config.executions, note)


def _check_heads(session: Session, trainer: Trainer) -> None:
    """After the first update of this process: it reached what chooses the values of each knob."""
    assert trainer.learner is not None, "it has just learned"
    try:
        gradients = require_gradients(trainer.learner, trainer.failures.legal_settings)
        record_check(session.store, gradients=dict(gradients))
    except KnobError as error:
        record_check(session.store, failed=str(error))
        raise


def _policy(session: Session, trainer: Trainer) -> Policy:
    """What is known now, frozen."""
    legal = np.ones(len(session.space), dtype=np.bool_)
    legal[trainer.failures.taken_out] = False
    return policy_of(session.config, trainer.evidence, trainer.learner, legal)


def policy_of(config: Config, evidence: Evidence, learner: Learner | None, legal: Flags) -> Policy:
    """What evidence and a learner know now, frozen.

    Args:
        config: of the run.
        evidence: of all executions so far.
        learner: that values settings for the request; None: there is none yet.
        legal: settings that may be chosen, bool of shape [S].
    """
    order, by_setting = evidence.order(), evidence.quality.mean()
    plain = QualityScorer.alike(by_setting, order, evidence.prompts)
    return Policy.of(
        config.train.learner,
        evidence.features,
        {"learned": plain if learner is None else learner.scorer(), "plain": plain},
        evidence.forecast(),
        Requests(prompts=evidence.prompts, tokens=evidence.tokens),
        evidence.quality.draws(evidence.rng(), _DRAWS),
        legal,
        min(config.reward.margin, evidence.mean_deviation()),
    )


def _frozen(session: Session, trainer: Trainer) -> Controller:
    """The controller that comes out, held to its budgets on requests that were not executed."""
    assert trainer.learner is not None, "it was trained"
    trainer.learner.finish()
    trainer.evidence.fit()
    latency = trainer.evidence.latency
    session.store.update_metadata(forecast={"error": latency.error(), "executions": latency.count})
    policy = _policy(session, trainer)
    metadata = ControllerMetadata(
        levels=session.space.levels,
        pruned=session.space.pruned,
        metric=session.metric,
        full_ms=trainer.full_now_ms(),
        learner=session.config.train.learner,
        config=session.config,
        budgets=trainer.budgets,
        model=session.workload.vlm.name,
        model_fingerprint=session.workload.vlm.fingerprint,
        conditions=session.conditions,
        executions=trainer.evidence.quality.count,
        taken_out=tuple(str(session.space.settings[position]) for position in trainer.failures.taken_out),
    )
    controller = Controller(policy=policy, observer=session.observer, metadata=metadata)
    requests = [session.runner.request(each) for each in session.samples(_SELECT_FROM)[:17]]
    took_ms = choosing_ms(controller, requests, session.clock)
    charged = replace(policy.forecast, controller=took_ms / metadata.full_ms)
    return replace(controller, policy=policy.renewed(charged, policy.legal))
