"""What policies did on samples that were measured: fixed settings, mixes of two, a controller. Arithmetic only."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chronostat.knobs.space import ActionSpace
from chronostat.measure.statistics import PairedBootstrap, weighted_quantile
from chronostat.records import Budget, LatencyMetric, PolicyScore, Trial

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
DEADLINE_SHARE = 0.95  # of the requests that have to be within a deadline


@dataclass(kw_only=True)
class Measurements:
    """Quality and latency of settings on samples; NaN where a setting was not executed or its execution failed.

    Attributes:
        quality: one row of S values in [0, 1] per sample.
        latency_ms: one row of S values of the run's metric per sample, without ``controller_ms``.
    """

    space: ActionSpace
    metric: LatencyMetric
    quality: list[Floats] = field(default_factory=list)
    latency_ms: list[Floats] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Take one sample's executions."""
        quality, latency_ms = np.full(len(self.space), np.nan), np.full(len(self.space), np.nan)
        for execution in trial.executions:
            if execution.timing is not None and execution.quality is not None:
                position = self.space.index(execution.setting)
                quality[position] = execution.quality
                latency_ms[position] = execution.latency_ms(self.metric)
        self.quality.append(quality)
        self.latency_ms.append(latency_ms)

    def complete(self, settings: Sequence[int]) -> "Pool":
        """The samples on which all of some settings were measured."""
        quality, latency_ms = np.array(self.quality), np.array(self.latency_ms)
        rows = np.isfinite(quality[:, settings]).all(axis=1)
        return Pool(quality=quality[rows], latency_ms=latency_ms[rows], rows=np.flatnonzero(rows))


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Samples that are compared with each other.

    Attributes:
        quality: shape [n, S].
        latency_ms: shape [n, S].
        rows: which of the measured samples these are, shape [n].
    """

    quality: Floats
    latency_ms: Floats
    rows: Indices

    def __len__(self) -> int:
        return len(self.rows)

    def fixed(self, setting: int) -> "Played":
        """One setting for every sample."""
        return self.played(np.full(len(self), setting))

    def mix(self, low: int, high: int, share: float) -> "Played":
        """By the toss of a coin: ``high`` for a ``share`` of the requests, ``low`` for the others."""
        one, other = self.fixed(low), self.fixed(high)
        return Played(
            weights=np.array([1 - share, share]),
            settings=np.vstack([one.settings, other.settings]),
            quality=np.vstack([one.quality, other.quality]),
            charged_ms=np.vstack([one.charged_ms, other.charged_ms]),
        )

    def played(self, settings: Indices, controller_ms: Floats | float = 0.0) -> "Played":
        """A setting for each sample, shape [n], chosen at a cost."""
        each = np.arange(len(self))
        return Played(
            weights=np.ones(1),
            settings=settings[None],
            quality=self.quality[each, settings][None],
            charged_ms=(self.latency_ms[each, settings] + controller_ms)[None],
        )


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a policy did on n samples: with k equally possible worlds, each with its weight.

    Attributes:
        weights: shape [k], summing to 1.
        settings: position in the space, shape [k, n].
        quality: shape [k, n].
        charged_ms: metric plus ``controller_ms``, shape [k, n].
    """

    weights: Floats
    settings: Indices
    quality: Floats
    charged_ms: Floats

    @property
    def accuracy(self) -> Floats:
        """Expected quality of each sample, shape [n]."""
        return self.weights @ self.quality

    @property
    def mean_ms(self) -> Floats:
        """Expected latency of each sample, shape [n]."""
        return self.weights @ self.charged_ms

    def within(self, limit_ms: float) -> Floats:
        """Probability of each sample to be within a limit, shape [n]."""
        return self.weights @ (self.charged_ms <= limit_ms)

    def keeps(self, budget: Budget, limit_ms: float) -> bool:
        """Whether the budget is kept by its own rule."""
        if budget.kind == "mean":
            return float(self.mean_ms.mean()) <= limit_ms
        return float(self.within(limit_ms).mean()) >= DEADLINE_SHARE

    def quantile_ms(self, q: float) -> float:
        """Quantile of the latency over all requests."""
        weights = np.repeat(self.weights, self.charged_ms.shape[1])
        return weighted_quantile(self.charged_ms.ravel(), weights, q)

    def shares(self, space: ActionSpace) -> tuple[tuple[str, float], ...]:
        """Settings with the share of requests that got them, most used first."""
        shares: defaultdict[str, float] = defaultdict(float)
        for weight, row in zip(self.weights, self.settings, strict=True):
            for position, n in Counter(row.tolist()).items():
                shares[str(space.settings[position])] += float(weight) * n / len(row)
        return tuple(sorted(shares.items(), key=lambda item: -item[1]))


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Two settings, and the share of requests that gets the dearer one."""

    low: int
    high: int
    share: float


def best_fixed(pool: Pool, candidates: Iterable[int], budget: Budget, limit_ms: float) -> int | None:
    """The candidate of highest accuracy that keeps the budget, ties to the faster; None if none keeps it."""
    kept = [(i, pool.fixed(i)) for i in candidates]
    ranked = [
        (float(played.accuracy.mean()), -float(played.mean_ms.mean()), i)
        for i, played in kept
        if played.keeps(budget, limit_ms)
    ]
    return max(ranked)[2] if ranked else None


def best_mix(pool: Pool, candidates: Sequence[int], limit_ms: float) -> Mix | None:
    """The mix of two candidates of highest accuracy whose mean latency is the limit; None if none can keep it."""
    accuracy = {i: float(pool.quality[:, i].mean()) for i in candidates}
    mean_ms = {i: float(pool.latency_ms[:, i].mean()) for i in candidates}
    below = [i for i in candidates if mean_ms[i] <= limit_ms]
    above = [i for i in candidates if mean_ms[i] > limit_ms]
    pure = [Mix(low=i, high=i, share=0.0) for i in below]
    mixed = [
        Mix(low=low, high=high, share=(limit_ms - mean_ms[low]) / (mean_ms[high] - mean_ms[low]))
        for low in below
        for high in above
    ]
    return max(
        [*pure, *mixed],
        key=lambda mix: (1 - mix.share) * accuracy[mix.low] + mix.share * accuracy[mix.high],
        default=None,
    )


def score(
    name: str,
    played: Played,
    budget: Budget,
    limit_ms: float,
    space: ActionSpace,
    bootstrap: PairedBootstrap,
    *,
    against: Played | None = None,
) -> PolicyScore:
    """A policy under a budget with intervals.

    Args:
        name: of the policy.
        played: what it did.
        budget: the budget.
        limit_ms: the budget in milliseconds on these samples.
        space: names the settings.
        bootstrap: over the same n samples.
        against: the controller on the same samples, for its gain over this policy; None for the controller.
    """
    return PolicyScore(
        policy=name,
        budget=budget,
        budget_ms=limit_ms,
        samples=played.settings.shape[1],
        settings=played.shares(space),
        accuracy=bootstrap.mean(played.accuracy),
        mean_ms=bootstrap.mean(played.mean_ms),
        p50_ms=played.quantile_ms(0.5),
        p95_ms=played.quantile_ms(0.95),
        share_within=bootstrap.mean(played.within(limit_ms)),
        gain=None if against is None else bootstrap.mean(against.accuracy - played.accuracy),
        kept=played.keeps(budget, limit_ms),
    )
