"""What is known of the quality of each setting for each request."""

import numpy as np

from chronostat.evidence.features import at_most, setting_features
from chronostat.evidence.linear import BayesianLinear, Flags, Floats, Indices
from chronostat.knobs.space import ActionSpace

_CENTRE = 0.5  # of qualities in [0, 1]
_AT_ONCE = 2**20  # comparisons of two settings for a request, so that some hundred settings need little memory
_SURE = 0.99  # probability at which less work is taken to be better than more


class QualityModel:
    """Bayesian regression of quality on (features of the prompt) x (features of the setting).

    Four groups of weights, each with a strength of its own: the mean, what settings differ in for all prompts, what
    prompts differ in under all settings, and what a setting is worth to one prompt and not to another.

    Quality is taken not to fall with more work, as far as the evidence does not say otherwise: the prediction for a
    setting is the middle between the best of those that do no more of anything and the worst of those that do no less.

    Args:
        space: S settings.
        prompt_size: 1 + F.
    """

    def __init__(self, space: ActionSpace, prompt_size: int) -> None:
        self._settings = setting_features(space)
        self._prompt_size = prompt_size
        groups = np.full((prompt_size, self._settings.shape[1]), 3)
        groups[0, 0], groups[0, 1:], groups[1:, 0] = 0, 1, 2
        self._weights = BayesianLinear(groups.ravel(), [1.0, 1.0, 1.0, 1.0], noise=0.15, least_noise=1e-2)
        self._below = at_most(space)

    @property
    def count(self) -> int:
        """Answers that it knows."""
        return self._weights.count

    def add(self, prompt: Floats, settings: Indices, quality: Floats) -> None:
        """Take answers to one request: features [1 + F], positions [n], quality [n]."""
        codes = self._settings[settings]
        x = (prompt[:, None] * codes[:, None]).reshape(len(settings), len(prompt) * codes.shape[1])
        self._weights.add(x, quality - _CENTRE)

    def fit(self) -> None:
        """Take into account what was added, its strengths too."""
        self._weights.fit()

    def update(self) -> None:
        """Take into account what was added."""
        self._weights.update()

    def mean(self) -> Floats:
        """From features of a prompt to the quality of each setting, shape [1 + F, S]; see ``predicted``."""
        return self._by_setting(self._weights.mean)

    def draws(self, rng: np.random.Generator, count: int) -> Floats:
        """Draws of the same from what may still be true, shape [count, 1 + F, S]."""
        return self._by_setting(self._weights.draw(rng, count))

    def _by_setting(self, weights: Floats) -> Floats:
        by_setting = weights.reshape(*weights.shape[:-1], self._prompt_size, -1) @ self._settings.T
        by_setting[..., 0, :] += _CENTRE
        return by_setting

    def order(self, prompts: Floats, rng: np.random.Generator) -> Flags:
        """Whether setting s is taken to be no better than t, bool of shape [S, S].

        Where it does no more of anything, unless the evidence says that it is better on average over some prompts.

        Args:
            prompts: features of requests, shape [N, 1 + F].
            rng: draws what may be true.
        """
        means = prompts.mean(axis=0) @ self.draws(rng, 400)  # [400, S]
        better = (means[:, :, None] > means[:, None]).mean(axis=0) > _SURE
        return self._below & ~better


def predicted(prompts: Floats, by_setting: Floats, order: Flags) -> Floats:
    """Quality of each setting, not falling along the order.

    Args:
        prompts: features, shape [N, 1 + F].
        by_setting: of ``QualityModel.mean`` or one of its draws, shape [..., 1 + F, S].
        order: of ``QualityModel.order``.

    Returns:
        Shape [..., N, S].
    """
    return along(prompts @ by_setting, order)


def along(quality: Floats, order: Flags) -> Floats:
    """Qualities [..., S] made not to fall along an order [S, S]: the mean of the two nearest bounds of each.

    The upper bound of setting t is the least of all that are no worse than it, the lower one the greatest of all that
    are no better; for a chain these are the bounds between which every monotone fit lies.
    """
    if np.count_nonzero(order) == len(order):  # none but each with itself
        return quality
    rows = quality.reshape(-1, quality.shape[-1])
    at_once = max(1, _AT_ONCE // order.size)
    pieces = [_between_bounds(rows[first : first + at_once], order) for first in range(0, len(rows), at_once)]
    return np.concatenate(pieces).reshape(quality.shape)


def _between_bounds(quality: Floats, order: Flags) -> Floats:
    """[N, S] and [S, S] -> [N, S]."""
    lower = np.where(order, quality[:, :, None], -np.inf).max(axis=1)  # over s with s <= t
    upper = np.where(order, quality[:, None], np.inf).min(axis=2)  # over t with s <= t
    return (lower + upper) / 2
