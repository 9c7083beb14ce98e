"""What policies did on samples that were measured: fixed settings, mixes of two, a controller. Arithmetic only."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chronostat.compare.reasons import that_count
from chronostat.compare.statistics import PairedBootstrap, weighted_quantile
from chronostat.knobs.space import ActionSpace
from chronostat.records import DEADLINE_SHARE, Budget, LatencyMetric, PolicyScore, Trial

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]


@dataclass(kw_only=True)
class Measurements:
    """Quality and latency of settings on samples; NaN where a setting was not executed or its execution failed.

    Attributes:
        quality: one row of S values in [0, 1] per sample.
        latency_ms: one row of S values of the run's metric per sample, without ``controller_ms``.
        disturbed: per sample why executions were disturbed, by the position of their setting.
    """

    space: ActionSpace
    metric: LatencyMetric
    quality: list[Floats] = field(default_factory=list)
    latency_ms: list[Floats] = field(default_factory=list)
    disturbed: list[Mapping[int, str]] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Take one sample's executions; of a setting that ran more than once the first."""
        quality, latency_ms = np.full(len(self.space), np.nan), np.full(len(self.space), np.nan)
        disturbed: dict[int, str] = {}
        for execution in reversed(trial.executions):
            if execution.timing is not None and execution.quality is not None:
                position = self.space.index(execution.setting)
                quality[position] = execution.quality
                latency_ms[position] = execution.latency_ms(self.metric)
                disturbed.pop(position, None)
                if execution.disturbed is not None:
                    disturbed[position] = execution.disturbed
        self.quality.append(quality)
        self.latency_ms.append(latency_ms)
        self.disturbed.append(disturbed)

    def complete(self, settings: Sequence[int]) -> "Pool":
        """The samples on which all of some settings were measured."""
        return self.at(np.flatnonzero(np.isfinite(np.array(self.quality)[:, settings]).all(axis=1)))

    def at(self, rows: Indices) -> "Pool":
        """Some of the samples."""
        return Pool(
            quality=np.array(self.quality)[rows],
            latency_ms=np.array(self.latency_ms)[rows],
            rows=rows,
            disturbed=tuple(self.disturbed[row] for row in rows.tolist()),
        )


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Samples that are compared with each other.

    Attributes:
        quality: shape [n, S].
        latency_ms: shape [n, S].
        rows: which of the measured samples these are, shape [n].
        disturbed: of each sample why executions were disturbed, by the position of their setting; empty: none was.
    """

    quality: Floats
    latency_ms: Floats
    rows: Indices
    disturbed: Sequence[Mapping[int, str]] = ()

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
            disturbed=tuple(a or b for a, b in zip(one.disturbed, other.disturbed, strict=True)),
        )

    def can_meet(self, limit_ms: float) -> Flags:
        """Whether any setting that was measured on a sample is within a limit, shape [n]."""
        return np.nanmin(self.latency_ms, axis=1) <= limit_ms

    @property
    def full_ms(self) -> float:
        """Median latency of ``full``, the denominator of budgets.

        Over the samples whose latency counts, as the means that are held against it: disturbances that raised only the
        denominator would widen every budget.
        """
        full = self.fixed(0)
        return float(np.median(full.charged_ms[0, full.timed]))

    def played(self, settings: Indices, controller_ms: Floats | float = 0.0) -> "Played":
        """A setting for each sample, shape [n], chosen at a cost."""
        each = np.arange(len(self))
        return Played(
            weights=np.ones(1),
            settings=settings[None],
            quality=self.quality[each, settings][None],
            charged_ms=(self.latency_ms[each, settings] + controller_ms)[None],
            disturbed=self._why(settings),
        )

    def _why(self, settings: Indices) -> tuple[str | None, ...]:
        if not self.disturbed:
            return (None,) * len(self)
        return tuple(why.get(i) for why, i in zip(self.disturbed, settings.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a policy did on n samples: with k equally possible worlds, each with its weight.

    Attributes:
        weights: shape [k], summing to 1.
        settings: position in the space, shape [k, n].
        quality: shape [k, n].
        charged_ms: metric plus ``controller_ms``, shape [k, n].
        disturbed: why an execution of a sample was disturbed, length n.
    """

    weights: Floats
    settings: Indices
    quality: Floats
    charged_ms: Floats
    disturbed: Sequence[str | None]

    @property
    def timed(self) -> Flags:
        """The samples whose latency counts, shape [n]."""
        return that_count(np.array([reason is None for reason in self.disturbed], dtype=np.bool_))

    @property
    def accuracy(self) -> Floats:
        """Expected quality of each sample, shape [n]."""
        return self.weights @ self.quality

    @property
    def mean_ms(self) -> Floats:
        """Expected latency of each sample, shape [n]."""
        return self.weights @ self.charged_ms

    @property
    def timed_ms(self) -> float:
        """Mean latency over the samples whose latency counts."""
        return float(self.mean_ms[self.timed].mean())

    def within(self, limit_ms: float) -> Floats:
        """Probability of each sample to be within a limit, shape [n]."""
        return self.weights @ (self.charged_ms <= limit_ms)

    def keeps(self, budget: Budget, limit_ms: float, can: Flags) -> bool:
        """Whether the budget is kept by its own rule.

        Args:
            budget: of either kind.
            limit_ms: in milliseconds.
            can: samples that some setting can bring in time, shape [n]; the others count for no deadline, which is not
                kept where there are none.
        """
        if budget.kind == "mean":
            return self.timed_ms <= limit_ms
        counts = self.timed & can
        return bool(counts.any()) and float(self.within(limit_ms)[counts].mean()) >= DEADLINE_SHARE

    def quantile_ms(self, q: float, can: Flags | None = None) -> float:
        """Quantile of the latency over all requests, or over some of them, bool of shape [n]."""
        charged_ms = self.charged_ms[:, self.timed if can is None or not (self.timed & can).any() else self.timed & can]
        return weighted_quantile(charged_ms.ravel(), np.repeat(self.weights, charged_ms.shape[1]), q)

    def shares(self, space: ActionSpace) -> tuple[tuple[str, float], ...]:
        """Settings with the share of requests that got them, most used first."""
        shares: defaultdict[str, float] = defaultdict(float)
        for weight, row in zip(self.weights, self.settings, strict=True):
            for position, n in Counter(row.tolist()).items():
                shares[str(space.settings[position])] += float(weight) * n / len(row)
        return tuple(sorted(shares.items(), key=lambda item: -item[1]))


def score(
    name: str,
    played: Played,
    budget: Budget,
    limit_ms: float,
    can: Flags,
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
        can: samples that can meet it, see ``Played.keeps``.
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
        accuracy=bootstrap.bounded(played.accuracy, 0.0, 1.0, can),
        mean_ms=bootstrap.mean(played.mean_ms, played.timed),
        p50_ms=played.quantile_ms(0.5, can),
        p95_ms=played.quantile_ms(0.95, can),
        share_within=bootstrap.bounded(played.within(limit_ms), 0.0, 1.0, played.timed & can),
        unmeetable=int((~can).sum()),
        gain=None if against is None else bootstrap.bounded(against.accuracy - played.accuracy, -1.0, 1.0, can),
        kept=played.keeps(budget, limit_ms, can),
    )
