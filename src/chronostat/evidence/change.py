"""What settings take now, from few measurements beside what was known of them before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from chronostat.evidence.features import setting_features
from chronostat.evidence.latency import Forecast, Row, allowed_beyond, out_of_fold, size_terms
from chronostat.evidence.linear import BayesianLinear, Flags, Floats, Indices
from chronostat.knobs.space import ActionSpace

_WHOLE = 10.0  # deviation of how much the machine as a whole may have changed, as a logarithm; so are the next ones
_MOVES = (0.0, 0.03, 0.1, 0.3)  # what the step from a value of a knob to the next may cost more or less
_LIKELY = np.array([3.0, 1.0, 1.0, 1.0])  # chances of these moves before anything is measured, in proportion
_TOGETHER = 0.3  # of such a move: what knobs do together beyond what they do one by one
_ALONE = 0.2  # of such a move: what a setting may move by itself
_TERMS = 2  # of ``size_terms``: how latency grows with image and with text tokens
_VARIANCES = (1.0, 1e-2, 1e-3)  # at first: of what has a deviation, of sizes and caches, and of requests
_LEAST_NOISE = 1e-6
_OLD = 20.0  # measurements that what was known of the noise counts for
_ENOUGH = 300  # residuals whose own distribution says more of late requests than the one known before


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Latencies of one request.

    Attributes:
        prompt: features, shape [1 + F].
        tokens: image and text tokens under each setting, shape [S, 2].
        settings: positions, shape [n].
        fractions: without the controller's own, as a fraction of what ``full`` took when the forecast was made,
            shape [n].
        cold: which of them began its trial: it finds caches cold, and forecasts are of warm ones; shape [n].
    """

    prompt: Floats
    tokens: Floats
    settings: Indices
    fractions: Floats
    cold: Flags


@dataclass(frozen=True, kw_only=True)
class Change:
    """What has changed.

    Attributes:
        forecast: of latencies as they are now, as fractions of the median of ``full`` now.
        full: median latency of ``full`` now over that of before.
        full_deviation: of its logarithm.
        moved: of each setting the logarithm of its latency as a fraction of ``full``, now less before, shape [S].
        deviation: of it, shape [S].
    """

    forecast: Forecast
    full: float
    full_deviation: float
    moved: Floats
    deviation: Floats


def change_of(space: ActionSpace, before: Forecast, timed: Sequence[Timed], prompts: Floats, tokens: Floats) -> Change:
    """Learn what has changed since a forecast was made.

    The logarithm of measured over forecast is regressed on what it may depend on: the machine as a whole, the values of
    the knobs, each setting by itself, the size of a request, and the request. How much may have changed is not known
    either: each of ``_MOVES`` counts by how well it explains what was measured. So where nothing has changed hardly
    anything is changed, and a setting that was not executed moves as those do that share its knobs' values.

    Args:
        space: S settings.
        before: what was known.
        timed: of each request what it took now; one at least.
        prompts: features of requests of the kind to come, shape [N, 1 + F].
        tokens: image and text tokens of the same requests under each setting, shape [N, S, 2].
    """
    fits = [_Fit(space, before, timed, move) for move in _MOVES]
    evidence = np.array([fit.weights.log_evidence for fit in fits])
    chances = _LIKELY * np.exp(evidence - evidence.max())
    chances /= chances.sum()
    whole = _mixed(chances, [fit.typical(relative=False) for fit in fits])
    moved = _mixed(chances, [fit.typical(relative=True) for fit in fits])
    slopes = before.slopes.copy()
    slopes[:_TERMS] += (chances @ np.stack([fit.sizes for fit in fits]))[:, None]
    folded = [out_of_fold(fit.weights, fit.rows) for fit in fits]
    residuals, settings = chances @ np.stack([each for each, _, _ in folded]), folded[0][1]
    middle, noise = _noise(before, residuals, settings)
    now = replace(
        before,
        base=before.base + whole.mean + middle,
        slopes=slopes,
        unknown=moved.deviation,
        **noise,
    )
    full = float(np.median(np.exp(now.logarithm(prompts, tokens)[:, 0])))
    return Change(
        forecast=replace(now, base=now.base - np.log(full)),
        full=full,
        full_deviation=float(whole.deviation[0]),
        moved=moved.mean,
        deviation=moved.deviation,
    )


class _Normal(NamedTuple):
    """Means and deviations, shape [S] each."""

    mean: Floats
    deviation: Floats


def _mixed(chances: Floats, parts: Sequence[_Normal]) -> _Normal:
    """Mean and deviation of what is one of some parts, with chances [H]."""
    means = np.stack([part.mean for part in parts])
    mean = chances @ means
    variance = chances @ (np.stack([part.deviation for part in parts]) ** 2 + (means - mean) ** 2)
    return _Normal(mean, np.sqrt(variance))


class _Fit:
    """What has changed, if a step between two values of a knob is taken to have moved by so much.

    Regressors of a measurement: the machine as a whole, what its setting shares with others, and the setting itself
    with what the forecast before was not sure of, each times the deviation that it is taken to have. Then its size and
    whether caches were cold, and its request; how much these matter follows from the evidence, like the noise.
    """

    def __init__(self, space: ActionSpace, before: Forecast, timed: Sequence[Timed], move: float) -> None:
        self._codes = move * _codes(space, before)
        self._own = np.diag(np.sqrt(before.unknown**2 + (_ALONE * move) ** 2))
        self._before, self._requests = before, len(timed)
        groups = np.repeat([0, 1, 2], [1 + self._codes.shape[1] + len(space), _TERMS + 1, len(timed)])
        self.weights = BayesianLinear(
            groups, _VARIANCES, noise=float((before.spread**2).mean()), least_noise=_LEAST_NOISE
        )
        self.rows = [self._row(each, i) for i, each in enumerate(timed)]
        for row in self.rows:
            self.weights.add(row.x, row.y)
        self.weights.fit()

    def _row(self, timed: Timed, request: int) -> Row:
        """Of one request; the logarithms are those of measured over forecast."""
        settings = timed.settings
        terms = size_terms(timed.tokens[None], self._before.image_tokens, self._before.text_tokens)[:_TERMS, 0]
        forecast = self._before.logarithm(timed.prompt[None], timed.tokens[None])[0]
        sizes = np.column_stack([*terms[:, settings], timed.cold.astype(np.float64)])
        x = self._of(settings, sizes, np.eye(self._requests)[[request] * len(settings)])
        y = np.log(timed.fractions) - forecast[settings]
        return Row(x=x, y=y, drawn_in=y, settings=settings, drift=0.0)

    def _of(self, settings: Indices, sizes: Floats, requests: Floats) -> Floats:
        """[n], [n, 3] and [n, T] -> [n, D]."""
        whole = np.full((len(settings), 1), _WHOLE)
        parts = [whole, self._codes[settings], self._own[settings], sizes, requests]
        return np.concatenate(parts, axis=1)

    def typical(self, *, relative: bool) -> _Normal:
        """Of the typical request under each setting the logarithm of now over before, or that relative to ``full``."""
        count = len(self._codes)
        x = self._of(np.arange(count), np.zeros((count, _TERMS + 1)), np.zeros((count, self._requests)))
        x = x - x[0] if relative else x
        return _Normal(x @ self.weights.mean, np.sqrt(np.maximum(self.weights.variance(x), 0.0)))

    @property
    def sizes(self) -> Floats:
        """What is added to the slopes of image and text tokens, shape [2]."""
        first = 1 + self._codes.shape[1] + len(self._codes)
        return self.weights.mean[first : first + _TERMS]


def _codes(space: ActionSpace, before: Forecast) -> Floats:
    """What settings share, shape [S, P]: steps of the knobs, their products, and how cheap a setting was before."""
    steps = sum(len(values) - 1 for values in space.levels.values())
    alone, together = np.split(setting_features(space)[:, 1:], [steps], axis=1)
    return np.concatenate([alone, _TOGETHER * together, (before.base - before.base[0])[:, None]], axis=1)


def _noise(before: Forecast, residuals: Floats, settings: Indices) -> tuple[float, dict[str, Any]]:
    """Middle of residuals [n] that were measured under settings [n], and what a forecast says of them around it.

    How wide they are is learned from few; how they are distributed needs many, and is taken to be as before until then.
    """
    count = len(residuals)
    many = count >= _ENOUGH
    middle = float(np.median(residuals) if many else -before.residuals.mean() * before.spread.mean())
    around = residuals - middle
    wider = (_OLD + ((around / before.spread[settings]) ** 2).sum()) / (_OLD + count)
    counts = np.bincount(settings, minlength=len(before.spread))
    sums = np.bincount(settings, around**2, minlength=len(before.spread))
    spread = np.sqrt((sums + _OLD * wider * before.spread**2) / (counts + _OLD))
    known = {"spread": spread, "smear": float((_OLD * before.smear + np.exp(around).sum()) / (_OLD + count))}
    if many:
        known |= {"residuals": np.sort(around / spread[settings]), "allowed": allowed_beyond(count)}
    return middle, known
