"""What is regressed on: features of a prompt from a kernel, and of a setting from the order of its knobs' values."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from chronostat.evidence.linear import Flags, Floats
from chronostat.knobs.space import ActionSpace
from chronostat.records import KnobValue

PROMPT_FEATURES = 24  # beside the constant one
_ANCHORS = 256  # different prompts that the kernel looks at
_DIRECTIONS = 64  # principal directions of the embeddings that distances are taken in
_MANY_TOKENS = 256.0  # of one picture; half of all where their number is not known
_LEAST_SHARE = 1e-9  # of the largest eigenvalue; below it a direction is rounding


@dataclass(frozen=True, kw_only=True)
class PromptFeatures:
    """Eigenfunctions of a Gaussian kernel over prompts, each scaled by the root of its eigenvalue.

    The kernel is ``exp(-|a - b|^2 / l)``, l the median squared distance between different prompts. Its leading
    eigenfunctions on requests that need not be executed (Nystroem's method; Williams and Seeger, NIPS 2001) are what
    prompts of this kind of traffic differ in, smooth ones first.

    Attributes:
        centre: of the embeddings, shape [D].
        directions: shape [D, R].
        anchors: prompts that are compared with, shape [A, R].
        scale: l.
        weights: from kernel values to features, shape [A, F].
    """

    centre: Floats
    directions: Floats
    anchors: Floats
    scale: float
    weights: Floats

    @classmethod
    def of(cls, prompts: Floats, seed: int) -> "PromptFeatures":
        """From the mean token embeddings of requests of the kind to come, shape [N, D]; ``seed`` draws the anchors."""
        distinct, counts = np.unique(prompts, axis=0, return_counts=True)
        if len(distinct) > _ANCHORS:
            chosen = np.sort(np.random.default_rng(seed).choice(len(distinct), _ANCHORS, replace=False))
            distinct, counts = distinct[chosen], counts[chosen]
        centre = prompts.mean(axis=0)
        directions = np.linalg.svd(distinct - centre, full_matrices=False)[2][:_DIRECTIONS].T
        anchors = (distinct - centre) @ directions
        squared = _squared_distances(anchors, anchors)
        apart = squared[squared > 0]
        scale = float(np.median(apart)) if len(apart) else 1.0
        shares = np.sqrt(counts / counts.sum())
        values, vectors = np.linalg.eigh(shares[:, None] * np.exp(-squared / scale) * shares)
        kept = np.argsort(-values)[: min(PROMPT_FEATURES, int((values > _LEAST_SHARE * values[-1]).sum()))]
        weights = shares[:, None] * vectors[:, kept] / np.sqrt(values[kept])
        return cls(centre=centre, directions=directions, anchors=anchors, scale=scale, weights=weights)

    def __call__(self, prompts: Floats) -> Floats:
        """Features of mean token embeddings [N, D], shape [N, 1 + F]; the first is 1."""
        squared = _squared_distances((prompts - self.centre) @ self.directions, self.anchors)
        return np.concatenate([np.ones((len(prompts), 1)), np.exp(-squared / self.scale) @ self.weights], axis=1)

    @property
    def size(self) -> int:
        """1 + F."""
        return 1 + self.weights.shape[1]

    def state(self) -> dict[str, Floats]:
        """As arrays by name."""
        names = ("centre", "directions", "anchors", "weights")
        return {name: getattr(self, name) for name in names} | {"scale": np.array(self.scale)}

    @classmethod
    def restored(cls, state: Mapping[str, Floats]) -> "PromptFeatures":
        """From what ``state`` gave."""
        return cls(
            centre=state["centre"],
            directions=state["directions"],
            anchors=state["anchors"],
            scale=float(state["scale"]),
            weights=state["weights"],
        )


def _squared_distances(one: Floats, other: Floats) -> Floats:
    """Between rows, [N, R] and [A, R] -> [N, A]."""
    squared = (one**2).sum(axis=1)[:, None] - 2 * one @ other.T + (other**2).sum(axis=1)
    return np.maximum(squared, 0.0)


def setting_features(space: ActionSpace) -> Floats:
    """Code of each setting, shape [S, P], the first column 1.

    A knob with n values has n - 1 steps of +1/2 or -1/2: step i tells the values beyond the i-th cheapest from those
    up to it, so that neighbours differ in one place. Then, for every two and every three knobs, the product of how far
    each is between its cheapest (-1) and its dearest value (1).
    """
    ranks = level_ranks(space)
    counts = [len(values) for values in space.levels.values()]
    steps = [(ranks[:, [k]] > np.arange(count - 1)) - 0.5 for k, count in enumerate(counts)]
    varying = [k for k, count in enumerate(counts) if count > 1]
    spread = {k: 2 * ranks[:, k] / (counts[k] - 1) - 1 for k in varying}
    groups = [group for size in (2, 3) for group in combinations(varying, size)]
    products = [np.prod([spread[k] for k in group], axis=0)[:, None] for group in groups]
    return np.concatenate([np.ones((len(space), 1)), *steps, *products], axis=1).astype(np.float64)


def level_ranks(space: ActionSpace) -> NDArray[np.int64]:
    """How dear the value of each knob is among its values, 0 the cheapest; int of shape [S, K]."""
    order = [np.argsort(np.argsort(amounts, kind="stable")) for amounts in _amounts(space)]
    return np.stack([order[k][levels] for k, levels in enumerate(np.array(space.level_indices).T)], axis=1)


def at_most(space: ActionSpace) -> Flags:
    """Whether each knob has the same value in setting s as in t or one that does less, bool of shape [S, S]."""
    levels = np.array(space.level_indices)
    amounts = np.stack([each[levels[:, k]] for k, each in enumerate(_amounts(space))], axis=1)
    return np.all((levels[:, None] == levels) | (amounts[:, None] < amounts), axis=2)


def _amounts(space: ActionSpace) -> list[Floats]:
    """For each knob how much each of its values computes."""
    return [np.array([_amount(value, values[0]) for value in values]) for values in space.levels.values()]


def _amount(value: KnobValue, full: KnobValue) -> float:
    """How much a value computes, comparable with the other values of its knob.

    A tuple beside a full value that is empty lists what is left out, any other one says how much of each block; a
    number beside it is of every block. A text is a way and an amount, ``pool:0.25``; an amount above 1 is a number of
    tokens, more of them nearer to all. Or it is a number and the share of what is left up to the full one, ``8:0.25``.
    """
    if isinstance(value, str):
        way, _, amount = value.partition(":")
        share = float(amount) if float(amount) <= 1 else float(amount) / (float(amount) + _MANY_TOKENS)
        if isinstance(full, int) and way.isdecimal():
            return int(way) + share * (full - int(way))
        return share
    if isinstance(value, tuple):
        return -float(len(value)) if full == () else float(np.mean(value))
    return float(value)
