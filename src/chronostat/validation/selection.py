"""What the controller has to beat: the best fixed settings and mixes, chosen on the validation split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from chronostat.compare.reasons import that_count
from chronostat.control.failures import IN_A_ROW, Failures
from chronostat.errors import MeasurementError
from chronostat.execution.execute import Request
from chronostat.records import Budget, Setting
from chronostat.runs.session import Session
from chronostat.validation.policies import Flags, Floats, Measurements, Mix, Pool, best_fixed, best_mix

FINALISTS = 3  # settings per budget that stay in the race
_OPEN_SHARE = 0.4  # of the time box, in which every setting runs
_LEAST_SAMPLES = 8
_SLACK = 1.05  # a budget that is missed by less on the first samples may still be kept


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """The fixed policies for one budget, found on the validation split.

    Attributes:
        fixed: position of the best fixed setting; the fastest one where none keeps the budget.
        accuracy: its accuracy on the validation samples.
        mix: the best mix of two settings; for ``mean`` budgets only.
    """

    fixed: int
    accuracy: float
    mix: Mix | None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rivals for every budget.

    Attributes:
        samples: validation samples on which the finalists were compared.
        full_ms: median latency of ``full``.
        latency_means: of every setting plus the mean ``controller_ms``, as fractions of ``full``; NaN if not measured.
        taken_out: settings that kept failing, those of the training among them.
    """

    samples: int
    rivals: dict[Budget, Rivals]
    full_ms: float
    latency_means: tuple[float, ...]
    taken_out: tuple[Setting, ...] = ()

    @property
    def settings(self) -> list[int]:
        """Every setting that a rival uses."""
        used = [i for r in self.rivals.values() for i in (r.fixed, *((r.mix.low, r.mix.high) if r.mix else ()))]
        return sorted(set(used))


def select_rivals(
    session: Session,
    budgets: Sequence[Budget],
    choosing_ms: Callable[[Request], float] = lambda request: 0.0,
    taken_out: Sequence[Setting] = (),
) -> Selection:
    """Measure fixed settings on validation samples until the time box ends.

    At first every setting runs on every sample. Then only those stay that can still be the best for some budget
    (``finalists``), so that these are compared on many more samples.

    Args:
        session: what executes.
        budgets: those that rivals are wanted for.
        choosing_ms: has a controller choose for a request, and says what that took.
        taken_out: settings that are not executed, since they kept failing.

    Raises:
        MeasurementError: ``full`` keeps failing, or no sample could be measured under all settings that are compared.
    """
    config = session.config.validation
    table = Measurements(space=session.space, metric=session.metric)
    failures = Failures(session.space, [IN_A_ROW if s in taken_out else 0 for s in session.space.settings])
    running, costs_ms = [i for i, s in enumerate(session.space.settings) if s not in taken_out], list[float]()
    is_open = True
    runner, seconds = session.runner, config.select_seconds
    samples = session.samples("validation")[: config.select_samples]
    with session.phase("select", seconds):
        start_s = runner.elapsed_s
        for index, sample in enumerate(samples):
            used = (runner.elapsed_s - start_s) / seconds
            if used >= 1 and index >= _LEAST_SAMPLES:
                break
            if used >= _OPEN_SHARE and index >= _LEAST_SAMPLES and is_open:
                running, is_open = finalists(_complete(table, running), budgets, running), False
            settings = [session.space.settings[i] for i in running]
            request = runner.request(sample)
            trial = runner.run("select", index, request, settings)
            table.add(trial)
            for position in failures.add(trial):
                session.take_out(session.space.settings[position], failures.reasons[position])
                running.remove(position)
            costs_ms.append(choosing_ms(request))
            note = f"{index + 1} samples, {len(running)} settings"
            session.progress.advance(max(used, (index + 1) / len(samples)), note)
    pool = _complete(table, running)
    return Selection(
        samples=len(pool),
        rivals={budget: _rivals(pool, running, budget) for budget in budgets},
        full_ms=full_ms(pool),
        latency_means=latency_means(table, float(np.mean(costs_ms))),
        taken_out=tuple(session.space.settings[position] for position in failures.taken_out),
    )


def _complete(table: Measurements, settings: Sequence[int]) -> Pool:
    pool = table.complete(settings)
    if not len(pool):
        raise MeasurementError(
            f"none of {len(table.quality)} validation samples could be measured under all {len(settings)} settings: "
            "executions failed, or answers could not be scored; see the failures in the run"
        )
    return pool


def latency_means(table: Measurements, controller_ms: float) -> tuple[float, ...]:
    """Mean latency of each setting plus ``controller_ms`` over the median of ``full`` on the same samples, length S.

    Disturbed executions are left out of both as they are of what rivals are chosen by.
    """
    latency_ms = np.array(table.latency_ms)
    calm = np.array([[i not in why for i in range(latency_ms.shape[1])] for why in table.disturbed], dtype=np.bool_)
    positions = range(latency_ms.shape[1])
    return tuple(_fraction(latency_ms[:, [0, i]], calm[:, [0, i]], controller_ms) for i in positions)


def _fraction(latency_ms: Floats, calm: Flags, controller_ms: float) -> float:
    """Of ``full`` and a setting, shape [n, 2] each; NaN without a sample that was measured under both."""
    both = np.isfinite(latency_ms).all(axis=1)
    if not both.any():
        return float("nan")
    full, setting = (latency_ms[both, i][that_count(calm[both, i])] for i in range(2))
    return float((setting.mean() + controller_ms) / np.median(full))


def full_ms(pool: Pool) -> float:
    """Median latency of ``full``, the denominator of budgets.

    Over the samples whose latency counts, as the means that are held against it: disturbances that raised only the
    denominator would widen every budget.
    """
    full = pool.fixed(0)
    return float(np.median(full.charged_ms[0, full.timed]))


def finalists(pool: Pool, budgets: Sequence[Budget], candidates: Sequence[int] | None = None) -> list[int]:
    """``full``, the fastest, and for each budget the settings of highest accuracy that keep it with some slack.

    The vertices of the upper hull of accuracy over latency stay as well: every best mix of two consists of them.

    Args:
        pool: samples on which all candidates were measured.
        budgets: that rivals are wanted for.
        candidates: settings in the race, ``full`` among them; all if absent.
    """
    everything = list(range(pool.quality.shape[1]) if candidates is None else candidates)
    mean_ms = np.array([pool.fixed(i).timed_ms for i in everything])
    accuracy = pool.quality[:, everything].mean(axis=0)
    kept = {0, *(everything[i] for i in (int(mean_ms.argmin()), *_upper_hull(mean_ms, accuracy)))}
    for budget in budgets:
        limit_ms = _SLACK * budget.ms(full_ms(pool))
        left = list(everything)
        for _ in range(FINALISTS):
            best = best_fixed(pool, left, budget, limit_ms)
            if best is None:
                break
            kept.add(best)
            left.remove(best)
    return sorted(kept)


def _upper_hull(mean_ms: np.ndarray, accuracy: np.ndarray) -> list[int]:
    """Vertices of the upper convex hull from the fastest to the most accurate setting (Andrew's monotone chain)."""
    hull: list[int] = []
    for i in np.lexsort((-accuracy, mean_ms)).tolist():
        while len(hull) > 1 and _turns_left(hull[-2], hull[-1], i, mean_ms, accuracy):
            hull.pop()
        if not hull or accuracy[i] > accuracy[hull[-1]]:
            hull.append(i)
    return hull


def _turns_left(a: int, b: int, c: int, x: np.ndarray, y: np.ndarray) -> bool:
    return (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]) >= 0


def _rivals(pool: Pool, candidates: Sequence[int], budget: Budget) -> Rivals:
    limit_ms = budget.ms(full_ms(pool))
    fixed = best_fixed(pool, candidates, budget, limit_ms)
    if fixed is None:
        fixed = min(candidates, key=lambda i: pool.fixed(i).timed_ms)
    return Rivals(
        fixed=fixed,
        accuracy=float(pool.quality[:, fixed].mean()),
        mix=best_mix(pool, candidates, limit_ms) if budget.kind == "mean" else None,
    )
