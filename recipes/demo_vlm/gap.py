"""What is worth controlling: fixed settings against the best setting of each kind, at the same mean cost."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from recipes.demo_vlm.evaluate import Row

from chronostat.data.demo.questions import KINDS

Setting = tuple[int, int, int]  # tiles, experts per token, blocks
BUDGETS = (0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60)


class Gap(NamedTuple):
    """Accuracies at one mean budget, a share of the full setting's cost."""

    budget: float
    fixed: float
    fixed_setting: Setting
    mix: float
    by_kind: float
    choices: dict[str, Setting]


def model_ms(setting: Setting) -> float:
    """Approximate prefill of a setting on one CPU thread, in ms.

    Fitted to five measured points of a model of this shape (67, 49, 57, 20 and 14 ms): a fixed part, a part for each
    tile seen, and for each block a fixed part and one per image token, of which experts are the larger half.
    """
    tiles, top_k, blocks = setting
    seen = tiles + (tiles > 1)
    per_token_ms = 0.0121 * {4: 1.0, 2: 0.75, 1: 0.62}[top_k]
    return 7.4 + 1.39 * seen + blocks * (1.2 + per_token_ms * 16 * seen)


def accuracies(rows: list[Row]) -> dict[Setting, dict[str, float]]:
    """Accuracy by setting, then kind."""
    table: dict[Setting, dict[str, float]] = defaultdict(dict)
    for row in rows:
        setting = (int(row["tiles"]), int(row["top_k"]), int(row["blocks"]))
        table[setting][str(row["kind"])] = int(row["right"]) / int(row["n"])
    return dict(table)


def shares() -> dict[str, float]:
    """The weight of each kind in the shipped task, summing to 1."""
    total = sum(kind.share for kind in KINDS.values())
    return {name: kind.share / total for name, kind in KINDS.items() if kind.share}


def gaps(table: Mapping[Setting, Mapping[str, float]], cost_ms: Mapping[Setting, float]) -> list[Gap]:
    """One comparison per budget; costs are by setting alone."""
    weights = shares()
    settings = list(table)
    cost = np.array([cost_ms[setting] for setting in settings]) / cost_ms[16, 4, 8]
    by_kind = np.array([[table[setting][kind] for kind in weights] for setting in settings])  # [setting, kind]
    weight = np.array(list(weights.values()))
    return [_gap(budget, settings, cost, by_kind, weight, list(weights)) for budget in BUDGETS]


def _gap(
    budget: float, settings: list[Setting], cost: np.ndarray, by_kind: np.ndarray, weight: np.ndarray, kinds: list[str]
) -> Gap:
    overall = by_kind @ weight
    allowed = np.where(cost <= budget, overall, -1.0)
    best = int(allowed.argmax())
    chosen = _by_kind_choice(budget, cost, by_kind, weight)
    return Gap(
        budget=budget,
        fixed=float(allowed[best]),
        fixed_setting=settings[best],
        mix=_best_mix(budget, cost, overall),
        by_kind=float(by_kind[chosen, np.arange(len(kinds))] @ weight),
        choices={kind: settings[i] for kind, i in zip(kinds, chosen, strict=True)},
    )


def _best_mix(budget: float, cost: np.ndarray, overall: np.ndarray) -> float:
    """The best chance mix of two settings whose mean cost is the budget (or one setting below it)."""
    best = float(overall[cost <= budget].max(initial=0.0))
    for i in np.flatnonzero(cost <= budget):
        for j in np.flatnonzero(cost > budget):
            part = (budget - cost[i]) / (cost[j] - cost[i])
            best = max(best, float((1 - part) * overall[i] + part * overall[j]))
    return best


def _by_kind_choice(budget: float, cost: np.ndarray, by_kind: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A setting for each kind, [kind], by the smallest price of cost whose mean cost keeps the budget."""
    for price in np.linspace(0.0, 5.0, 2_001):
        chosen = (by_kind - price * cost[:, None]).argmax(0)
        if cost[chosen] @ weight <= budget:
            return chosen
    return np.full(by_kind.shape[1], int(cost.argmin()))
