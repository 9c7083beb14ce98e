"""What is worth controlling: fixed settings against a choice for each kind and each question, at the same cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from recipes.demo_vlm.table import FULL, Row, Setting, accuracies, setting_of, shares, unpack_bits

Floats = NDArray[np.float64]
BudgetKind = Literal["mean", "deadline"]

BUDGETS = (0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60)
_COST_STEP = 1e-4  # costs are rounded up to it where budgets are divided among kinds: a budget is never overrun


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A table and its costs as arrays.

    Attributes:
        settings: those that were answered under and whose cost is known.
        cost: share of the full setting's prefill, [setting].
        kinds: those of the shipped mix.
        weight: of each kind in the mix, summing to 1, [kind].
        accuracy: [setting, kind].
        right: which questions were answered right, [setting, kind, question]; None if the table does not say.
    """

    settings: tuple[Setting, ...]
    cost: Floats
    kinds: tuple[str, ...]
    weight: Floats
    accuracy: Floats
    right: NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Accuracies over the mix at one budget, a share of the full setting's cost.

    Attributes:
        kind: "mean": the mean cost keeps the budget; "deadline": the cost of each request does.
        fixed: the best single setting.
        mix: the best chance mix of two settings, which kind or question does not enter; under a deadline it is `fixed`.
        by_kind: the best setting for each kind of question.
        choices: those settings.
        hindsight: the best setting for each question, chosen by who knows which answers are right: a bound that no
            controller reaches. None if the table does not say which questions were answered right.
    """

    kind: BudgetKind
    budget: float
    fixed: float
    fixed_setting: Setting
    mix: float
    by_kind: float
    choices: dict[str, Setting]
    hindsight: float | None


def measured(rows: Sequence[Row], cost: Mapping[Setting, float]) -> Measured:
    """Arrays from the rows of a table and the costs by setting; cheap settings first, so that they win ties."""
    table, weights = accuracies(rows), shares()
    settings = tuple(sorted((setting for setting in table if setting in cost), key=lambda setting: cost[setting]))
    by_key = {(setting_of(row), row["kind"]): row for row in rows}
    right = None
    if all("bits" in row for row in rows):
        right = np.array([[unpack_bits(by_key[setting, kind]) for kind in weights] for setting in settings])
    return Measured(
        settings=settings,
        cost=np.array([cost[setting] for setting in settings]) / cost[FULL],
        kinds=tuple(weights),
        weight=np.array(list(weights.values())),
        accuracy=np.array([[table[setting][kind] for kind in weights] for setting in settings]),
        right=right,
    )


def gaps(task: Measured) -> list[Gap]:
    """One comparison for each kind of budget and each of `BUDGETS` that some setting keeps."""
    kinds: tuple[BudgetKind, ...] = ("mean", "deadline")
    return [gap_at(task, kind, budget) for kind in kinds for budget in BUDGETS if budget >= task.cost.min()]


def gap_at(task: Measured, kind: BudgetKind, budget: float) -> Gap:
    """The comparison at one budget, which the cheapest setting keeps."""
    overall = task.accuracy @ task.weight
    allowed = task.cost <= budget
    best = int(np.where(allowed, overall, -1.0).argmax())
    if kind == "mean":
        mix = best_mix(task.cost, overall, budget)
        chosen = best_by_kind(task.cost, task.accuracy, task.weight, budget)
    else:
        mix = float(overall[best])
        chosen = np.where(allowed[:, None], task.accuracy, -1.0).argmax(0)
    return Gap(
        kind=kind,
        budget=budget,
        fixed=float(overall[best]),
        fixed_setting=task.settings[best],
        mix=mix,
        by_kind=float(task.accuracy[chosen, np.arange(len(task.kinds))] @ task.weight),
        choices={name: task.settings[i] for name, i in zip(task.kinds, chosen, strict=True)},
        hindsight=None if task.right is None else hindsight(task.cost, task.right, task.weight, budget, kind),
    )


def best_mix(cost: Floats, overall: Floats, budget: float) -> float:
    """The best chance mix of two settings whose mean cost is the budget, or one setting below it.

    Args:
        cost: [setting].
        overall: accuracy over the mix, [setting].
        budget: that some setting keeps.
    """
    cheap, dear = cost <= budget, cost > budget
    best = float(overall[cheap].max())
    if not dear.any():
        return best
    part = (budget - cost[cheap, None]) / (cost[None, dear] - cost[cheap, None])  # [cheap, dear] chance of the dear one
    return max(best, float(((1 - part) * overall[cheap, None] + part * overall[None, dear]).max()))


def best_by_kind(cost: Floats, accuracy: Floats, weight: Floats, budget: float) -> NDArray[np.intp]:
    """The setting of each kind, [kind], that gives the best mean accuracy at a mean cost within the budget.

    Solved exactly (a knapsack with one choice per kind, by dynamic programming) for costs rounded up to 1e-4.

    Args:
        cost: [setting].
        accuracy: [setting, kind].
        weight: [kind].
        budget: that some setting keeps.
    """
    cheapest = int(cost.argmin())
    extra = np.ceil(np.outer(cost - cost[cheapest], weight) / _COST_STEP - 1e-9).astype(int)  # [setting, kind] steps
    room = int((budget - cost[cheapest] * weight.sum()) / _COST_STEP + 1e-9)
    best = np.zeros(room + 1)  # by steps spent at most: accuracy of the kinds so far
    picks: list[NDArray[np.intp]] = []
    for kind, share in enumerate(weight):
        totals = np.full((len(cost), room + 1), -np.inf)
        for setting, steps in enumerate(extra[:, kind]):
            if steps <= room:
                totals[setting, steps:] = best[: room + 1 - steps] + share * accuracy[setting, kind]
        picks.append(totals.argmax(0))
        best = totals.max(0)
    chosen = np.empty(len(weight), dtype=np.intp)
    for kind in reversed(range(len(weight))):
        chosen[kind] = picks[kind][room]
        room -= int(extra[chosen[kind], kind])
    return chosen


def hindsight(cost: Floats, right: NDArray[np.bool_], weight: Floats, budget: float, kind: BudgetKind) -> float:
    """Accuracy of who knows beforehand which settings answer a question right.

    Under a mean budget each question starts at the cheapest setting and is moved to the cheapest one that answers it,
    the least extra cost first, until the budget is spent; the last extra cost that is paid is the budget's price.

    Args:
        cost: [setting].
        right: [setting, kind, question].
        weight: of each kind, [kind].
        budget: that some setting keeps.
        kind: of the budget.
    """
    questions = right.shape[2]
    if kind == "deadline":
        return float(right[cost <= budget].any(0).mean(-1) @ weight)
    extra = np.where(right, (cost - cost.min())[:, None, None], np.inf).min(0)  # [kind, question]
    share = np.repeat(weight / questions, questions)  # [kind * question]
    order = extra.flatten().argsort(kind="stable")
    extra, share = extra.flatten()[order], share[order]
    answerable = np.isfinite(extra)
    spent = np.cumsum(extra[answerable] * share[answerable])
    return float(share[answerable][spent <= budget - cost.min() + 1e-12].sum())


def gap_lines(found: Sequence[Gap]) -> list[list[str]]:
    """A head and a line for each budget; gains are in points over the best fixed setting and the best static mix."""
    lines = [["budget", "of full", "best fixed", "static mix", "by kind", "hindsight", "over fixed", "over mix"]]
    for gap in found:
        bound = "" if gap.hindsight is None else f"{gap.hindsight:.3f}"
        shown = (f"{value:.3f}" for value in (gap.fixed, gap.mix, gap.by_kind))
        gains = (f"{100 * (gap.by_kind - other):.1f}" for other in (gap.fixed, gap.mix))
        lines.append([gap.kind, f"{gap.budget:.2f}", *shown, bound, *gains])
    return lines


def print_gaps(found: Sequence[Gap]) -> None:
    """Prints the comparison at every budget, and which setting each kind wants."""
    for line in gap_lines(found):
        print(*(cell.rjust(11) for cell in line))
    for gap in found:
        print(f"\n{gap.kind} {gap.budget:.2f}: best fixed is {setting_text(gap.fixed_setting)}; by kind:")
        for kind, setting in gap.choices.items():
            print(f"    {kind:11} {setting_text(setting)}")


def setting_text(setting: Setting) -> str:
    """A setting in words."""
    tokens, top_k, skipped, *kept = setting
    blocks = f"without blocks {skipped[0]} to {skipped[-1]}" if skipped else "all blocks"
    return ", ".join([f"{tokens} tokens", *kept, f"top_k {top_k}", blocks])
