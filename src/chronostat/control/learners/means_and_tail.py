"""What holds choices to budgets: the measured latency of each setting, and the price of latency."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil

import numpy as np
import torch
from torch import Tensor

from chronostat.control.learners.multipliers import Multipliers, penalised
from chronostat.control.learners.tensors import with_prefix, without_prefix
from chronostat.errors import BudgetError
from chronostat.records import DEADLINE_SHARE, Budget

_CALIBRATION_WEIGHT = 16.0  # measurements that a setting's mean of the calibration counts for
_RECENT = 2048  # measurements that the tail is taken from
_SETTLED = 64  # budgets for which a price is fitted


class TooTightError(BudgetError):
    """No setting can meet a budget.

    Attributes:
        cheapest: the tightest budget of this kind that some setting can meet, as a fraction of ``full``.
    """

    def __init__(self, budget: Budget, cheapest: float) -> None:
        self.cheapest = cheapest
        super().__init__(
            f"no setting can meet the budget {budget.kind} {budget.fraction:.4g} of full; the cheapest needs "
            f"{ceil(cheapest * 1e4) / 1e4:.4f} of full, ask for at least that"
        )


class LatencyMeans:
    """Mean measured latency of each setting, and how far above its setting's mean a slow request lies.

    Args:
        calibrated: means of the calibration, as fractions of ``full``, length S; NaN where there is none: counted as
            dear as the dearest until it has been measured.

    Attributes:
        means: fractions of ``full``, float64 of shape [S].
        tail: 95 % quantile of latency / mean of its setting, over the latest measurements of all settings; 1 before
            the first. A setting is taken to meet a deadline if its mean times this does.
    """

    def __init__(self, calibrated: Sequence[float]) -> None:
        means = torch.tensor(calibrated, dtype=torch.float64)
        self.means = torch.where(means.isfinite(), means, means.nan_to_num(nan=-torch.inf).max())
        self.tail = 1.0
        self._counts = torch.full_like(self.means, _CALIBRATION_WEIGHT)
        self._ratios = torch.zeros(0, dtype=torch.float64)

    def add(self, settings: Tensor, latency: Tensor) -> None:
        """Take measurements: settings [n], fractions of ``full`` [n]; equal draws share one measurement."""
        for setting, value in dict(zip(settings.tolist(), latency.tolist(), strict=True)).items():
            self._counts[setting] += 1
            self.means[setting] += (value - self.means[setting]) / self._counts[setting]
            self._ratios = torch.cat([self._ratios[1 - _RECENT :], (value / self.means[setting]).reshape(1)])
        self.tail = float(self._ratios.quantile(DEADLINE_SHARE))

    def renew(self, measured: Tensor) -> None:
        """Put fresh means in the place of the old ones.

        Args:
            measured: fractions of ``full``, shape [S]; NaN where there is none: these move as the others do on average.
        """
        fresh = measured.isfinite()
        moved = (measured[fresh] / self.means[fresh]).mean() if fresh.any() else 1.0
        self.means = torch.where(fresh, measured.to(self.means), self.means * moved)

    def state(self) -> dict[str, Tensor]:
        """Means, counts and recent ratios."""
        return self.policy_state() | {"counts": self._counts.clone(), "ratios": self._ratios.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        self.load_policy_state(state)
        self._counts, self._ratios = state["counts"].clone(), state["ratios"].clone()

    def policy_state(self) -> dict[str, Tensor]:
        """Means and tail."""
        return {"means": self.means.clone(), "tail": torch.tensor(self.tail, dtype=torch.float64)}

    def load_policy_state(self, state: Mapping[str, Tensor]) -> None:
        """Decide as with what ``policy_state`` gave."""
        self.means, self.tail = state["means"].clone(), float(state["tail"])


class Limits:
    """Turns scores of settings into choices that keep a budget.

    Under a ``mean`` budget latency has a price, so that choices keep it on average. Under a ``deadline`` the settings
    that would miss it are taken out. Both leave a margin: of settings that are alike, those are picked whose
    measurements happened to come out too low.

    Args:
        calibrated: mean latency of each setting in the calibration, as fractions of ``full``, length S.
        budgets: the budgets of the training.
        margin: share of each budget left free.

    Attributes:
        latencies: what was measured of each setting.
        prices: the multiplier of each mean budget.
        legal: which settings may be used, bool of shape [S].
    """

    def __init__(self, calibrated: Sequence[float], budgets: Sequence[Budget], *, margin: float = 0.0) -> None:
        self._margin = margin
        self.latencies = LatencyMeans(calibrated)
        self.prices = Multipliers([budget.fraction for budget in budgets if budget.kind == "mean"])
        self.legal = torch.ones(len(calibrated), dtype=torch.bool)

    def take_out(self, settings: Sequence[int]) -> None:
        """Settings that may not be used any more."""
        self.legal[list(settings)] = False

    def only_legal(self, scores: Tensor) -> Tensor:
        """Scores of settings, shape [..., S]; minus infinity for those that were taken out."""
        return scores.masked_fill(~self.legal, -torch.inf)

    def penalised(self, scores: Tensor, budget: Budget, factor: Tensor | float = 1.0) -> Tensor:
        """Scores from which the best may be taken, shape [..., S]; at least one is finite.

        Args:
            scores: without regard to latency, shape [..., S].
            budget: of either kind.
            factor: scales the price, shape [..., 1].
        """
        means, scores = self.latencies.means, self.only_legal(scores)
        if budget.kind == "mean":
            return penalised(scores, factor * self.prices.at(budget.fraction), means, budget.fraction)
        slow, limit = means * self.latencies.tail, budget.fraction * (1 - self._margin)
        return scores.masked_fill(slow > max(limit, float(slow[self.legal].min())), -torch.inf)

    def choose(self, scores: Tensor, budget: Budget) -> int:
        """The best setting that the budget can pay.

        Args:
            scores: without regard to latency, shape [S].
            budget: of either kind.

        Raises:
            TooTightError: no setting can meet the budget.
        """
        cheapest = self.cheapest(budget)
        if budget.fraction < cheapest:
            raise TooTightError(budget, cheapest)
        return int(self.penalised(scores, budget).argmax())

    def mean_price(self) -> float:
        """What the latency of ``full`` costs, on average over the mean budgets; 0 if there are none."""
        prices = [value / limit for value, limit in zip(self.prices.values, self.prices.fractions, strict=True)]
        return sum(prices) / max(len(prices), 1)

    def cheapest(self, budget: Budget) -> float:
        """The tightest budget of this kind that some setting can meet, as a fraction of ``full``."""
        cheapest = float(self.latencies.means[self.legal].min())
        return cheapest if budget.kind == "mean" else cheapest * self.latencies.tail

    def settle(
        self, score_at: Callable[[Budget], Tensor], latency_means: Tensor | None = None, *, lowest: float = 0.0
    ) -> None:
        """Fit the price of every mean budget between the cheapest and the dearest setting.

        Args:
            score_at: scores of the settings for some requests under a budget, shape [N, S].
            latency_means: measured since the training, see ``LatencyMeans.renew``.
            lowest: lowest price; below 0 to spend what the scores alone would leave of a budget.
        """
        if latency_means is not None:
            self.latencies.renew(latency_means)
        means, legal = self.latencies.means, self.latencies.means[self.legal]
        self.prices = Multipliers(np.geomspace(float(legal.min()), float(legal.max()), _SETTLED).tolist())
        scores = [
            self.only_legal(score_at(Budget(kind="mean", fraction=fraction))) for fraction in self.prices.fractions
        ]
        self.prices.fit(scores, means, margin=self._margin, lowest=lowest)

    def state(self) -> dict[str, Tensor]:
        """Latencies, prices and which settings are legal."""
        return self._around(self.latencies.state())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        self.latencies.load(without_prefix("latencies", state))
        self._load_around(state)

    def policy_state(self) -> dict[str, Tensor]:
        """Only what choices need."""
        return self._around(self.latencies.policy_state())

    def load_policy_state(self, state: Mapping[str, Tensor]) -> None:
        """Choose as with what ``policy_state`` gave."""
        self.latencies.load_policy_state(without_prefix("latencies", state))
        self._load_around(state)

    def _around(self, latencies: Mapping[str, Tensor]) -> dict[str, Tensor]:
        prices = with_prefix("prices", self.prices.state())
        return with_prefix("latencies", latencies) | prices | {"legal": self.legal.clone()}

    def _load_around(self, state: Mapping[str, Tensor]) -> None:
        self.prices.load(without_prefix("prices", state))
        self.legal = state["legal"].clone()
