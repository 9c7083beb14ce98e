"""How much was gained, and what was kept? Tables over worlds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.estimates import format_estimate, markdown_table
from chronostat.evidence.linear import Floats
from chronostat.records import DEADLINE_SHARE, Estimate

_RESAMPLES = 2_000
_DIGITS = 5
_EXACT = 1.01  # a mean budget counts as kept up to here

Columns = Mapping[str, Sequence[Any]]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The same rows as columns, numbers rounded."""
    return {name: [_rounded(row[name]) for row in rows] for name in rows[0]}


def _rounded(value: Any) -> Any:  # noqa: ANN401 - plain data
    return round(value, _DIGITS) if isinstance(value, float) else value


def print_report(columns: Columns) -> None:
    """Both tables, the second one for deadlines."""
    arrays = {name: np.array(values) for name, values in columns.items()}
    for kind, title in (("mean", "Mean budgets"), ("deadline", "Deadlines")):
        mine = arrays["kind"] == kind
        print(f"\n{title}\n\n{markdown_table(_table({name: values[mine] for name, values in arrays.items()}, kind))}")


def _table(rows: Mapping[str, NDArray[Any]], kind: str) -> list[list[str]]:
    budgets = " / ".join(f"{budget:g}" for budget in np.unique(rows["budget"]))
    over = ["points over best fixed at", "over best mix at"] if kind == "mean" else ["points over best fixed at"]
    spent = ["worst world, worst run over mix", "spent"] if kind == "mean" else ["points by kind", "within"]
    head = ["noise", "executions", "policy", *(f"{text} {budgets}" for text in over), "share of the oracle by kind, %"]
    lines = [[*head, *spent, "kept, % of runs", "best fixed chosen is off by", "learned, %"]]
    cells = _mean_cells if kind == "mean" else _deadline_cells
    for noise, size, policy in sorted(set(zip(rows["noise"], rows["size"], rows["policy"], strict=True))):
        mine = (rows["noise"] == noise) & (rows["size"] == size) & (rows["policy"] == policy)
        lines.append([noise, f"{size:,}", policy, *cells({name: values[mine] for name, values in rows.items()})])
    return lines


def _mean_cells(part: Mapping[str, NDArray[Any]]) -> list[str]:
    over_mix = part["accuracy"] - part["mix"]
    worst = _by_world(part, over_mix).min()
    return [
        _by_budget(part, 100 * (part["accuracy"] - part["fixed"])),
        _by_budget(part, 100 * over_mix),
        format_estimate(share(part), digits=0, scale=100),
        f"{100 * worst:+.1f}, {100 * over_mix.min():+.1f}",
        _by_budget(part, part["spent"], digits=3),
        _by_budget(part, 100.0 * (part["spent"] <= _EXACT), digits=0),
        f"{100 * (part['fixed'] - part['chosen_fixed']).mean():.1f}",
        _by_budget(part, 100.0 * part["learned"], digits=0),
    ]


def _deadline_cells(part: Mapping[str, NDArray[Any]]) -> list[str]:
    return [
        _by_budget(part, 100 * (part["accuracy"] - part["fixed"])),
        format_estimate(share(part), digits=0, scale=100),
        _by_budget(part, 100 * (part["by_kind"] - part["fixed"])),
        _by_budget(part, part["spent"], digits=3),
        _by_budget(part, 100.0 * (part["spent"] >= DEADLINE_SHARE), digits=0),
        f"{100 * (part['fixed'] - part['chosen_fixed']).mean():.1f}",
        _by_budget(part, 100.0 * part["learned"], digits=0),
    ]


def share(part: Mapping[str, NDArray[Any]]) -> Estimate:
    """Mean gain over the best fixed setting as a share of what the oracle by kind gains; resampled over worlds.

    NaN where nothing can be gained.
    """
    gained = _by_world(part, part["accuracy"] - part["fixed"])
    possible = _by_world(part, part["by_kind"] - part["fixed"])
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(gained), np.full(len(gained), 1 / len(gained)), size=_RESAMPLES)
    if not possible.any():
        return Estimate(point=float("nan"), low=float("nan"), high=float("nan"))
    low, high = np.quantile(weights @ gained / (weights @ possible), [0.025, 0.975])
    return Estimate(point=float(gained.sum() / possible.sum()), low=float(low), high=float(high))


def _by_world(part: Mapping[str, NDArray[Any]], values: NDArray[Any]) -> Floats:
    """Mean over seeds and budgets in each world."""
    return np.array([values[part["world"] == world].mean() for world in np.unique(part["world"])])


def _by_budget(part: Mapping[str, NDArray[Any]], values: NDArray[Any], *, digits: int = 1) -> str:
    means = [values[part["budget"] == budget].mean() for budget in np.unique(part["budget"])]
    return " / ".join(f"{mean:.{digits}f}" for mean in means)
