"""What is known of the latency of each setting for each request: a forecast for the choice, never for a reward."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from chronostat.evidence.features import setting_features
from chronostat.evidence.linear import BayesianLinear, Flags, Floats, Indices
from chronostat.knobs.space import ActionSpace
from chronostat.records import DEADLINE_SHARE

_FOLDS = 5
_TERMS = 6  # those of ``size_terms``, and whether an execution began its trial
_VARIANCES = (100.0, 1.0, 1e-2, 1e-1, 1e-2, 1e-3)  # of groups at first: mean, knobs, offsets, size, its cross, prompt
_LEAST_SPREAD = 1e-3  # of the logarithm of a latency: no clock is as even as a few equal measurements look
_PRIOR_RESIDUALS = 20.0  # residuals of all settings that the spread of each begins with
_REACH = 3.0  # robust deviations from the middle, beyond which a residual counts as one that lies there
_DRAWN_IN = 2  # times; the middle and the deviation have settled by then
_NORMAL_MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
DOUBT = 1.0  # deviations of the forecast from the truth that being in time allows for
_CONFIDENCE = 0.95  # that at least ``DEADLINE_SHARE`` of the requests are within


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Latency of every setting for a request that has not run yet, as a fraction of the median of ``full``.

    With z the logarithms of a request's tokens relative to those of the typical request under the same setting,
    ``log latency = base + slopes . (z, z z') + prompt . features``; the mean of the latencies is the exponential of
    that times ``smear``, the mean exponential of the residuals (Duan, Smearing estimate, JASA 78, 1983).

    Attributes:
        image_tokens: of the typical request under each setting, shape [S].
        text_tokens: of the typical request.
        base: shape [S].
        slopes: of the five terms of ``size_terms``, shape [5, S].
        prompt: of the features of the prompt, shape [1 + F]; 0 for the constant one.
        smear: mean latency over typical latency.
        spread: deviation of the logarithm of a latency from its forecast, under each setting, shape [S].
        unknown: deviation of the forecast itself from the truth, relative to that of ``full``, shape [S].
        residuals: deviations of measured latencies from forecasts that did not know them, in units of the spread of
            their setting, ascending, shape [R].
        allowed: share of them that may lie beyond a deadline, so that at least 95 % of the requests keep it with 95 %
            confidence.
        controller: the controller's own latency, as a fraction of ``full``.
    """

    image_tokens: Floats
    text_tokens: float
    base: Floats
    slopes: Floats
    prompt: Floats
    smear: float
    spread: Floats
    unknown: Floats
    residuals: Floats
    allowed: float
    controller: float = 0.0

    def mean(self, prompts: Floats, tokens: Floats) -> Floats:
        """Mean latency: features [N, 1 + F], tokens [N, S, 2] -> [N, S]."""
        return np.exp(self.logarithm(prompts, tokens)) * self.smear + self.controller

    def late(self, prompts: Floats, tokens: Floats, limit: float, doubt: float = DOUBT) -> Floats:
        """Probability to exceed a limit: features [N, 1 + F], tokens [N, S, 2] -> [N, S].

        The share of residuals beyond it, with the forecast raised by ``doubt`` deviations of what it may be too low by:
        choices prefer what came out too fast by chance. Residuals are out of fold as in cross-conformal prediction
        (Vovk 2015), so that it holds for requests that are exchangeable with those that were measured, whatever the
        noise is like.
        """
        return self.lateness(prompts, tokens, doubt)(limit)

    def lateness(self, prompts: Floats, tokens: Floats, doubt: float = DOUBT) -> Callable[[float], Floats]:
        """``late`` of the same requests under any limit."""
        raised = self.logarithm(prompts, tokens) + doubt * self.unknown

        def late(limit: float) -> Floats:
            room = np.log(max(limit - self.controller, 1e-12)) - raised
            return 1 - np.searchsorted(self.residuals, room / self.spread, side="right") / len(self.residuals)

        return late

    def logarithm(self, prompts: Floats, tokens: Floats) -> Floats:
        """Of the typical latency, without the controller's own: features [N, 1 + F], tokens [N, S, 2] -> [N, S]."""
        terms = size_terms(tokens, self.image_tokens, self.text_tokens)
        return self.base + np.einsum("jns,js->ns", terms, self.slopes) + (prompts @ self.prompt)[:, None]

    def state(self) -> dict[str, Floats]:
        """As arrays by name."""
        return {name: np.asarray(value, dtype=np.float64) for name, value in vars(self).items()}

    @classmethod
    def restored(cls, state: Mapping[str, Floats]) -> "Forecast":
        """From what ``state`` gave."""
        plain = ("text_tokens", "smear", "allowed", "controller")
        arrays: dict[str, Any] = {name: float(value) if name in plain else value for name, value in state.items()}
        return cls(**arrays)


def size_terms(tokens: Floats, image_tokens: Floats, text_tokens: float) -> Floats:
    """Z of image and text tokens, their squares and their product; [N, S, 2] -> [5, N, S]."""
    image = np.log1p(tokens[:, :, 0]) - np.log1p(image_tokens)
    text = np.log1p(tokens[:, :, 1]) - np.log1p(text_tokens)
    return np.stack([image, text, image * image, text * text, image * text])


class LatencyModel:
    """Bayesian regression of the logarithm of latency on setting, size and prompt.

    Each setting has an offset of its own beside what its knobs' values say, so that one that was measured often is
    known by that and one that never ran by its neighbours. What does not vary in these requests fades out.

    An execution that was interrupted says little about its setting. So the regression takes measurements whose residual
    lies far out as if it lay ``_REACH`` robust deviations away (the modified residuals of Huber, Robust Statistics,
    1981, section 7.8). How far latencies scatter, and their mean, are those of the measurements as they are.

    The first execution of a trial finds caches cold. Settings that a learner draws begin a trial more often than
    ``full`` does, so what that takes is told apart, and forecasts are of warm executions; budgets are fractions.

    Args:
        space: S settings.
        prompts: features of requests of the kind to come, shape [N, 1 + F].
        tokens: image and text tokens of the same requests under each setting, shape [N, S, 2].
    """

    def __init__(self, space: ActionSpace, prompts: Floats, tokens: Floats) -> None:
        self._settings = setting_features(space)
        self._prompts, self._tokens = prompts, tokens
        self._typical = np.median(tokens[:, :, 0], axis=0), float(np.median(tokens[:, :, 1]))
        codes, count = self._settings.shape[1], len(space)
        sizes = [1, codes - 1, count, _TERMS, _TERMS * (codes - 1), prompts.shape[1] - 1]
        groups = np.repeat(np.arange(len(sizes)), sizes)
        self._weights = BayesianLinear(groups, _VARIANCES, noise=2e-2, least_noise=_LEAST_SPREAD**2)
        self._rows: list[Row] = []
        self._new: list[Row] = []
        self._within = (-np.inf, np.inf)  # what residuals are drawn in to
        self._known: tuple[float, Forecast] | None = None

    @property
    def count(self) -> int:
        """Latencies that were added."""
        return self._weights.count + sum(len(row.y) for row in self._new)

    def add(
        self,
        prompt: Floats,
        tokens: Floats,
        settings: Indices,
        fractions: Floats,
        *,
        cold: Flags | None = None,
        drift: float = 1.0,
    ) -> None:
        """Take latencies of one request; they count from the next ``update`` or ``fit`` on.

        Args:
            prompt: features, shape [1 + F].
            tokens: under each setting, shape [S, 2].
            settings: positions, shape [n].
            fractions: of ``full`` of the same moment, without the controller's own, shape [n].
            cold: which of them began a trial, shape [n]; none if absent.
            drift: of that moment; fractions are known better without it, and how far latencies scatter with it: a
                machine that was slow for a while will be so again.
        """
        count = len(settings)
        x = self._rows_of(prompt[None].repeat(count, axis=0), tokens[None].repeat(count, axis=0), settings, cold)
        y = np.log(fractions)
        self._new.append(Row(x=x, y=y, drawn_in=y, settings=settings, drift=float(np.log(drift))))

    def _rows_of(self, prompts: Floats, tokens: Floats, settings: Indices, cold: Flags | None = None) -> Floats:
        """Regressors of one setting for each request: [n, 1 + F], [n, S, 2], [n], [n] -> [n, D]."""
        each = np.arange(len(settings))
        began = np.zeros(len(each)) if cold is None else cold.astype(np.float64)
        terms = np.column_stack([*size_terms(tokens, *self._typical)[:, each, settings], began])
        codes = self._settings[settings]
        offsets = np.eye(len(self._settings))[settings]
        crossed = (terms[:, :, None] * codes[:, None, 1:]).reshape(len(each), _TERMS * (codes.shape[1] - 1))
        return np.concatenate([codes, offsets, terms, crossed, prompts[:, 1:]], axis=1)

    def fit(self) -> None:
        """Take into account what was added, its strengths too."""
        self._take_new()
        self._weights.fit()
        for _ in range(_DRAWN_IN if self._rows else 0):
            self._draw_all_in()
            self._weights.fit()

    def update(self) -> None:
        """Take into account what was added."""
        self._take_new()
        self._weights.update()

    def _take_new(self) -> None:
        new = [self._drawn_in(row) for row in self._new]
        for row in new:
            self._weights.add(row.x, row.drawn_in)
        self._rows += new
        self._new, self._known = [], None

    def _draw_all_in(self) -> None:
        """Find anew how far residuals reach, and take all measurements by that."""
        x, y = np.concatenate([row.x for row in self._rows]), np.concatenate([row.y for row in self._rows])
        residuals = y - x @ self._weights.mean
        middle = float(np.median(residuals))
        reach = _REACH * max(_NORMAL_MAD * float(np.median(np.abs(residuals - middle))), _LEAST_SPREAD)
        self._within = middle - reach, middle + reach
        self._rows = [self._drawn_in(row) for row in self._rows]
        self._weights.retake(x, np.concatenate([row.drawn_in for row in self._rows]))

    def _drawn_in(self, row: "Row") -> "Row":
        predicted = row.x @ self._weights.mean
        return row._replace(drawn_in=predicted + np.clip(row.y - predicted, *self._within))

    @property
    def full(self) -> float:
        """Median latency of ``full`` over the requests, as a fraction of what its measurements are a fraction of."""
        return self._known_now()[0]

    def forecast(self) -> Forecast:
        """What was known at the last ``fit`` or ``update``; needs one measurement at least."""
        return self._known_now()[1]

    def error(self) -> float:
        """Half of the measurements differ from a forecast that did not know them by more than this share."""
        residuals, _, _ = out_of_fold(self._weights, self._rows)
        return float(np.expm1(np.median(np.abs(residuals))))

    def _known_now(self) -> tuple[float, Forecast]:
        if self._known is None:
            middle, smear, spread, residuals = self._residuals()
            base, slopes, prompt = self._by_setting()
            forecast = Forecast(
                image_tokens=self._typical[0],
                text_tokens=self._typical[1],
                base=base,
                slopes=slopes[:-1],
                prompt=prompt,
                smear=smear,
                spread=spread,
                unknown=self._unknown(),
                residuals=residuals,
                allowed=allowed_beyond(len(residuals)),
            )
            typical = np.median(forecast.mean(self._prompts, self._tokens)[:, 0]) / smear
            # budgets are fractions of the median of full
            self._known = float(typical * np.exp(middle)), replace(forecast, base=base - np.log(typical))
        return self._known

    def _by_setting(self) -> tuple[Floats, Floats, Floats]:
        """Base [S], slopes of all terms [6, S] and what the features of a prompt count [1 + F]."""
        codes, count = self._settings.shape[1], len(self._settings)
        edges = np.cumsum([codes, count, _TERMS, _TERMS * (codes - 1)])
        main, offsets, common, crossed, prompt = np.split(self._weights.mean, edges)
        slopes = common[:, None] + crossed.reshape(_TERMS, -1) @ self._settings[:, 1:].T
        return self._settings @ main + offsets, slopes, np.concatenate([[0.0], prompt])

    def _residuals(self) -> tuple[float, float, Floats, Floats]:
        """Middle of residuals out of fold; with drift: smear, spread of each setting [S], residuals in units of it [R].

        A fold holds whole requests.
        """
        steady, settings, drifts = out_of_fold(self._weights, self._rows)
        residuals = steady + drifts
        residuals -= np.median(residuals)
        middle, smear = float(np.median(steady)), float(np.exp(residuals).mean())
        counts = np.bincount(settings, minlength=len(self._settings))
        squares = np.bincount(settings, residuals**2, minlength=len(self._settings))
        spread = np.sqrt((squares + _PRIOR_RESIDUALS * (residuals**2).mean()) / (counts + _PRIOR_RESIDUALS))
        spread = np.maximum(spread, _LEAST_SPREAD)
        return middle, smear, spread, np.sort(residuals / spread[settings])

    def _unknown(self) -> Floats:
        """Of the typical request, [S]."""
        typical = self._rows_of_typical()
        return np.sqrt(np.maximum(self._weights.variance(typical - typical[0]), 0.0))

    def _rows_of_typical(self) -> Floats:
        """Of the typical request under each setting, [S, D]."""
        count = len(self._settings)
        typical = np.stack([np.broadcast_to(value, count) for value in self._typical], axis=1)
        prompt = self._prompts.mean(axis=0)
        return self._rows_of(np.tile(prompt, (count, 1)), np.tile(typical, (count, 1, 1)), np.arange(count))

    def deviation(self, prompts: Floats, tokens: Floats, settings: Indices, latency: Floats) -> float:
        """How unsure the mean latency of some choices is: its standard deviation as a share of it.

        Args:
            prompts: features, shape [N, 1 + F].
            tokens: shape [N, S, 2].
            settings: chosen, shape [N].
            latency: their forecasts, shape [N].
        """
        direction = (latency / latency.sum()) @ self._rows_of(prompts, tokens, settings)
        full = self._rows_of(prompts, tokens, np.zeros_like(settings)).mean(axis=0)
        return float(np.sqrt(self._weights.variance((direction - full)[None])[0]))


class Row(NamedTuple):
    """Latencies of one request: regressors [n, D], settings [n], the logarithm of the drift.

    Attributes:
        y: their logarithms, shape [n].
        drawn_in: the same as a regression took them, shape [n].
    """

    x: Floats
    y: Floats
    drawn_in: Floats
    settings: Indices
    drift: float


def out_of_fold(weights: BayesianLinear, rows: Sequence[Row]) -> tuple[Floats, Indices, Floats]:
    """Residuals of measurements that the regression does not know, with the setting and the drift of each.

    Args:
        weights: the regression of all rows.
        rows: one for each request.
    """
    residuals: list[Floats] = []
    settings: list[Indices] = []
    drifts: list[Floats] = []
    for fold in range(min(_FOLDS, len(rows))):
        mine = rows[fold::_FOLDS]
        x, y = np.concatenate([row.x for row in mine]), np.concatenate([row.y for row in mine])
        drawn_in = np.concatenate([row.drawn_in for row in mine])
        residuals.append(y - x @ weights.without(x, drawn_in).mean)
        settings.append(np.concatenate([row.settings for row in mine]))
        drifts.append(np.concatenate([np.full(len(row.y), row.drift) for row in mine]))
    return np.concatenate(residuals), np.concatenate(settings), np.concatenate(drifts)


def allowed_beyond(count: int) -> float:
    """Share of measured residuals that may lie beyond a deadline that at least 95 % of requests keep.

    Beyond the k-th smallest of n lie at most 5 % of all with a confidence that is binomial (Wilks 1941): the number of
    measured ones below the true 95 % quantile is. With too few to be that sure it is 0.
    """
    below = np.cumsum(_binomial(count, DEADLINE_SHARE))  # [k]: at most k of them lie below the quantile
    rank = int(np.searchsorted(below, _CONFIDENCE)) + 1
    return max(count - rank, 0) / count


def _binomial(count: int, share: float) -> Floats:
    """Probabilities of 0 to ``count`` successes."""
    k = np.arange(1, count + 1)
    logarithms = np.concatenate([[0.0], np.cumsum(np.log((count - k + 1) / k) + np.log(share / (1 - share)))])
    return np.exp(logarithms + count * np.log(1 - share))
