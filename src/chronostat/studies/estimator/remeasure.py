"""Held-out requests measured twice: the estimator of a run on trial."""

from collections.abc import Sequence

import numpy as np

from chronostat.config import Config
from chronostat.errors import ConfigError, MeasurementError
from chronostat.execution.execute import Request
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import clock_for
from chronostat.records import Execution, Setting, StageTiming, Trial
from chronostat.runs.estimator import Estimator, require_measured, stored_executions
from chronostat.runs.store import RunStore
from chronostat.runs.workload import Workload
from chronostat.studies.estimator.evaluation import Evaluation, Known, errors, ordered_pairs

_SETTINGS = 6  # of each request: full, and others drawn from the space
LEAST_REQUESTS = 5
"""That are measured however long they take: fewer say too little about an estimator."""

Row = Sequence[Execution]  # of one request under each of its settings


def evaluate(store: RunStore, config: Config, *, seconds: float, requests: int | None = None) -> Evaluation:
    """Execute test samples under some settings, each twice, in passes of random order.

    The second pass is the reference; the first is what measuring once says of it. Nothing that the run executed of the
    test samples is learned from.

    Args:
        store: a measured run.
        config: the run's.
        seconds: time box of executing; it ends no evaluation before ``LEAST_REQUESTS``.
        requests: most requests; all of the test split if absent.

    Raises:
        UnlikeConditions: the run was not measured on this model under the conditions of now.
        StoreError: too few stored executions.
        MeasurementError: too few requests could be measured.
        ConfigError: the run judged no budgets, or ``requests`` are too few.
    """
    if requests is not None and requests < LEAST_REQUESTS:
        raise ConfigError(f"requests = {requests}: an evaluation needs at least {LEAST_REQUESTS}")
    fractions = [budget.fraction for budget in config.validation.budgets()]
    if not fractions:
        raise ConfigError("the run has no budgets to decide; name some in its validation section")
    workload = Workload.load(config)
    with workload.stabilised():
        conditions = workload.conditions()
        require_measured(store, model=workload.vlm.model, conditions=conditions)
        stored = _to_learn_from(store, workload)
        estimator = Estimator(stored)
        first, second = _measure_twice(workload, seconds, requests)
    once, reference = _known(first), _known(second)
    budgets_ms = [fraction * float(np.median(reference.prefill_ms[:, 0])) for fraction in fractions]
    guessed = Known.of([estimator.timings(row) for row in second])
    return Evaluation(
        run=str(store.folder),
        learned_from=len(stored),
        requests=len(second),
        executions=2 * sum(map(len, second)),
        pairs=len(ordered_pairs(reference)),
        budgets_ms=tuple(budgets_ms),
        estimated=errors(guessed, reference, budgets_ms),
        measured_once=errors(once, reference, budgets_ms),
        conditions=conditions,
    )


def _to_learn_from(store: RunStore, workload: Workload) -> list[Execution]:
    held_out = {_id(trial_input) for trial_input in workload.dataset.split("test")}
    return [e for e in stored_executions(store) if e.timing is not None and e.sample_id not in held_out]


def _id(trial_input: object) -> str:
    return str(getattr(trial_input, "id"))  # noqa: B009 - samples and ready batches both have one


def _measure_twice(workload: Workload, seconds: float, requests: int | None) -> tuple[list[Row], list[Row]]:
    """Rows of the two passes; ``full`` comes first in each."""
    runner = _runner(workload)
    rng = np.random.default_rng(workload.config.seed)
    trial_inputs = workload.dataset.split("test")[:requests]
    runner.run("warmup", 0, runner.request(trial_inputs[0]), workload.space.settings)
    begin_s = runner.elapsed_s
    first: list[Row] = []
    second: list[Row] = []
    tried = 0
    for index, trial_input in enumerate(trial_inputs):
        request, settings = runner.request(trial_input), _drawn(workload.space, rng)
        rows = [_row(runner, 2 * index + again, request, settings) for again in range(2)]
        if all(execution.timing is not None for row in rows for execution in row):
            first.append(rows[0])
            second.append(rows[1])
        tried = index + 1
        if tried >= LEAST_REQUESTS and runner.elapsed_s - begin_s >= seconds:
            break
    if len(first) < LEAST_REQUESTS:
        raise MeasurementError(
            f"only {len(first)} of {tried} held-out requests could be measured twice under every setting, at least "
            f"{LEAST_REQUESTS} are needed; give the test split more samples or, where executions failed, more --seconds"
        )
    return first, second


def _row(runner: TrialRunner, index: int, request: Request, settings: Sequence[Setting]) -> Row:
    trial = runner.run("test", index, request, settings)
    return [trial.executions[position] for position in trial.draws]


def _drawn(space: ActionSpace, rng: np.random.Generator) -> list[Setting]:
    others = rng.permutation(np.arange(1, len(space)))[: _SETTINGS - 1]
    return [space.full, *(space.settings[i] for i in others)]


def _runner(workload: Workload) -> TrialRunner:
    model = workload.vlm.model

    def forget(_: Trial) -> None:
        """An evaluation stores nothing in the run that it judges."""

    return TrialRunner(
        model=model,
        processor=workload.vlm.processor,
        quality=None,
        full=workload.space.full,
        max_new_tokens=workload.config.measure.max_new_tokens,
        clock=clock_for(model.device),
        seed=workload.config.seed,
        keep=forget,
        anchor_every_s=float("inf"),  # full is in every row anyway
        sample=workload.config.measure.sample,
    )


def _known(rows: Sequence[Row]) -> Known:
    return Known.of([[_timing(execution) for execution in row] for row in rows])


def _timing(execution: Execution) -> StageTiming:
    assert execution.timing is not None, "rows with failed executions are left out"
    return execution.timing
