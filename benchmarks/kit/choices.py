"""What a policy chose for recorded samples, and how good that was: frozen learners and the best fixed setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.kit.estimates import crossed_interval, format_estimate
from benchmarks.kit.recordings import Floats, Indices, Recording
from chronostat.control.learners import Learner
from chronostat.records import DEADLINE_SHARE, Budget, Estimate
from chronostat.validation.policies import Pool, best_fixed

FIXED = "best fixed"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one policy did under one budget on every validation sample; shape [seeds, samples] each."""

    quality: Floats
    fractions: Floats

    def kept(self, budget: Budget) -> list[bool]:
        """For each seed whether the budget was kept by its own rule."""
        if budget.kind == "mean":
            return (self.fractions.mean(axis=1) <= budget.fraction).tolist()
        return ((self.fractions <= budget.fraction).mean(axis=1) >= DEADLINE_SHARE).tolist()


def choose(
    learner: Learner, recording: Recording, budgets: Sequence[Budget], *, renew: bool = False
) -> dict[Budget, Indices]:
    """The frozen policy's settings on every sample; settled on the other half of the samples each time.

    Args:
        learner: its prices, and with ``renew`` its latencies, are those of the last half afterwards.
        recording: the samples.
        budgets: to choose under.
        renew: hold it to the budgets by what the other half measured, as validation does, not by its training.
    """
    settings = {budget: np.zeros(len(recording), dtype=np.intp) for budget in budgets}
    for here, other in halves(len(recording)):
        means = torch.from_numpy(np.nanmean(recording.fractions[other], axis=0)) if renew else None
        learner.settle(recording.observations[torch.from_numpy(other)], means)
        for budget, chosen in settings.items():
            chosen[here] = [learner.decide(recording.observations[i], budget) for i in here.tolist()]
    return settings


def choose_fixed(recording: Recording, budgets: Sequence[Budget]) -> dict[Budget, Indices]:
    """The best fixed setting on every sample; chosen on the other half of the samples each time."""
    settings = {budget: np.zeros(len(recording), dtype=np.intp) for budget in budgets}
    candidates = range(recording.quality.shape[1])
    for here, other in halves(len(recording)):
        half = recording.rows(other)
        pool = Pool(quality=half.quality, latency_ms=half.fractions, rows=other)
        for budget, chosen in settings.items():
            found = best_fixed(pool, candidates, budget, budget.fraction)
            chosen[here] = int(half.fractions.mean(axis=0).argmin()) if found is None else found
    return settings


def halves(count: int) -> list[tuple[Indices, Indices]]:
    """Even and odd samples, each with the other half."""
    even, odd = np.arange(0, count, 2), np.arange(1, count, 2)
    return [(even, odd), (odd, even)]


def judge(recording: Recording, settings: Sequence[Mapping[Budget, Indices]], budget: Budget) -> Judged:
    """Look up what was chosen by each seed."""
    each = np.arange(len(recording))
    chosen = [by_budget[budget] for by_budget in settings]
    return Judged(
        quality=np.array([recording.quality[each, row] for row in chosen]),
        fractions=np.array([recording.fractions[each, row] for row in chosen]),
    )


class Score(NamedTuple):
    """How good one policy is under one budget.

    Attributes:
        row: accuracy, mean fraction of latency and whether the budget was kept, by seed, and the gains; plain data.
        gains: in quality over each rival, paired by seed and sample.
    """

    row: dict[str, Any]
    gains: dict[str, Estimate]


def score(mine: Judged, rivals: Mapping[str, Judged], budget: Budget, rng: np.random.Generator) -> Score:
    """Score a policy against its rivals; ``rng`` draws the resamples of the intervals."""
    gains = {name: crossed_interval(mine.quality - rival.quality, rng) for name, rival in rivals.items()}
    row = {
        "accuracy": mine.quality.mean(axis=1).tolist(),
        "mean_fraction": mine.fractions.mean(axis=1).tolist(),
        "kept": mine.kept(budget),
        "gain_over": {name: [gain.point, gain.low, gain.high] for name, gain in gains.items()},
    }
    return Score(row, gains)


def in_points(gain: Estimate) -> str:
    """A gain as text in percentage points."""
    return format_estimate(gain, digits=1, scale=100)
