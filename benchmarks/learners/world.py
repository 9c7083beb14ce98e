"""What is a world? Scenes for the run, others for the verdict, and how the machine's latencies scatter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.learners.table import Table
from chronostat.evidence.linear import Floats, Indices

Noise = Callable[[np.random.Generator, int], Floats]


def _lognormal(rng: np.random.Generator, count: int) -> Floats:
    return np.exp(0.125 * rng.standard_normal(count))


def _calm(rng: np.random.Generator, count: int) -> Floats:
    return np.exp(0.03 * rng.standard_normal(count))


def _spikes(rng: np.random.Generator, count: int) -> Floats:
    return np.exp(0.06 * rng.standard_normal(count)) * np.where(rng.random(count) < 0.04, 1.8, 1.0)


def _student(rng: np.random.Generator, count: int) -> Floats:
    return np.exp(0.06 * rng.standard_t(4, count))


NOISES: Mapping[str, Noise] = {"lognormal": _lognormal, "calm": _calm, "spikes": _spikes, "student": _student}
_KNOWN_BY = 200_000  # draws by which the truth about a noise is known


@dataclass(frozen=True, kw_only=True)
class World:
    """Requests to learn from, those of a run's training and selection, and requests to be judged on: scenes apart.

    Attributes:
        table: the answers.
        noise: name of ``NOISES``.
        scenes: of the requests to learn from.
        factors: what the noise makes of a latency, in units of its median, ascending: a budget is a fraction of the
            median latency of ``full``. Shape [D].
        weight: share of each prompt among the requests to be judged on, shape [P].
        right: expected quality of each setting summed over all of these that have the prompt, shape [P, S].
        by_kind: accuracy of each setting on these by kind of question, shape [K, S].
    """

    table: Table
    noise: str
    scenes: Indices
    factors: Floats
    weight: Floats
    right: Floats
    by_kind: Floats

    @classmethod
    def of(cls, table: Table, noise: str, seed: int) -> "World":
        """Half of the scenes for each side; ``seed`` divides them."""
        order = np.random.default_rng(seed).permutation(len(table.right))
        scenes, judged = np.split(order, [len(order) // 2])
        each = np.broadcast_to(table.share / len(judged), (len(judged), len(table.share)))
        weight, right = np.zeros(len(table.texts)), np.zeros((len(table.texts), len(table.space)))
        np.add.at(weight, table.prompt[judged], each)
        np.add.at(right, table.prompt[judged], each[:, :, None] * table.right[judged])
        raw = np.sort(NOISES[noise](np.random.default_rng(0), _KNOWN_BY))
        return cls(
            table=table,
            noise=noise,
            scenes=scenes,
            factors=raw / np.median(raw),
            weight=weight,
            right=right,
            by_kind=table.right[judged].mean(axis=0),
        )

    @property
    def mean_cost(self) -> Floats:
        """True mean latency of each setting, shape [S]."""
        return self.table.cost * self.factors.mean()

    def within(self, deadline: float) -> Floats:
        """True share of requests that each setting answers within a deadline, shape [S]."""
        return np.searchsorted(self.factors, deadline / self.table.cost, side="right") / len(self.factors)

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Scene and kind of a request to learn from."""
        return int(rng.choice(self.scenes)), int(rng.choice(len(self.table.share), p=self.table.share))

    def execute(self, request: tuple[int, int], settings: Indices, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Quality and latency of a request under some settings, each of shape [n]."""
        factors = self.factors[rng.integers(len(self.factors), size=len(settings))]
        return self.table.right[request][settings].astype(np.float64), self.table.cost[settings] * factors
