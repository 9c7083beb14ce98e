"""What would be gained by knowing the kind of each question, which the controller never sees."""

from collections.abc import Sequence

import numpy as np

from chronostat.evidence.linear import Flags, Floats, Indices
from chronostat.evidence.quality import QualityModel, predicted
from chronostat.knobs.space import ActionSpace


class KnowingKinds:
    """The controller's own regression of quality, with the kind of question in the place of the prompt.

    Args:
        space: S settings.
        kinds: of samples that may come; nothing is known of others but what all have in common.
        seed: of what is drawn.
    """

    def __init__(self, space: ActionSpace, kinds: Sequence[str], seed: int) -> None:
        self._kinds = sorted(set(kinds))
        self._quality = QualityModel(space, 1 + len(self._kinds))
        self._seed = seed
        self._known: tuple[Floats, Flags] | None = None

    def learn(self, kind: str, settings: Indices, probabilities: Floats, quality: Floats) -> None:
        """What settings were worth to a question of a kind, shape [n] each; by what chance is the same to it."""
        self._quality.add(self._features([kind])[0], settings, quality)
        self._known = None

    def scores(self, kinds: Sequence[str]) -> Floats:
        """Expected quality of settings for questions of some kinds, shape [N, S]."""
        if self._known is None:
            self._quality.fit()
            order = self._quality.order(self._features(self._kinds), np.random.default_rng(self._seed))
            self._known = self._quality.mean(), order
        return predicted(self._features(kinds), *self._known)

    def _features(self, kinds: Sequence[str]) -> Floats:
        """1, and 1 at the place of the kind: shape [N, 1 + K]."""
        own = np.array(kinds)[:, None] == np.array(self._kinds)
        return np.concatenate([np.ones((len(kinds), 1)), own.astype(np.float64)], axis=1)
