"""What a plain contextual bandit makes of the same executions: Vowpal Wabbit's ``cb_explore_adf``.

Its regression of what a setting costs in quality learns from every draw, in order. ``squarecb`` and ``regcb`` are two
ways to explore with that regression; on executions that are given there is nothing to explore, and it is the same
whichever of them is named (``tests/benchmarks/test_learners.py``).
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from chronostat.errors import ConfigError
from chronostat.evidence.linear import Floats, Indices
from chronostat.knobs.space import ActionSpace

OPTIONS = "--cb_explore_adf --squarecb --cb_type mtr --interactions ps --quiet"


class PlainLibrary:
    """A Vowpal Wabbit workspace that values settings for prompts.

    Args:
        space: S settings.
        options: of the workspace.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, space: ActionSpace, options: str = OPTIONS) -> None:
        try:
            from vowpalwabbit import Workspace
        except ImportError as error:
            raise ConfigError(
                "validation.beside = 'vowpalwabbit' needs the package of that name; install it with: "
                "pip install 'chronostat[rivals]'"
            ) from error
        self._workspace: Any = Workspace(options)
        rows = [
            [f"{name}_{level}" for name, level in zip(space.levels, row, strict=True)] for row in space.level_indices
        ]
        self._actions = [f"|s {' '.join(row)} setting_{i}" for i, row in enumerate(rows)]

    def learn(self, prompt: str, settings: Indices, probabilities: Floats, quality: Floats) -> None:
        """Each distinct draw of a request, with the chance that it was drawn with; shape [n] each."""
        context = _context(prompt)
        for setting, chance, value in zip(settings, probabilities, quality, strict=True):
            lines = [context, *self._actions]
            lines[1 + setting] = f"{setting}:{1 - value}:{chance} {lines[1 + setting]}"
            self._workspace.learn(lines)

    def scores(self, prompts: Sequence[str]) -> Floats:
        """How it values settings for each prompt, up to a factor and a constant of the prompt; shape [P, S].

        SquareCB draws a setting a with probability ``1 / (S + g gap(a))``, gap what it is expected to lose against the
        best one and g a number that grows with what was learned; the best one has what is left.
        """
        chances = [self._workspace.predict([_context(prompt), *self._actions]) for prompt in prompts]
        return np.minimum(len(self._actions) - 1 / np.array(chances), 0.0)

    def weights(self) -> Floats:
        """Of its regression."""
        return np.array([self._workspace.get_weight(i) for i in range(self._workspace.num_weights())])


def _context(prompt: str) -> str:
    return f"shared |p {' '.join(re.findall('[a-z0-9]+', prompt.lower()))}"
