"""What the bundled model has to show, and whether it does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from recipes.demo_vlm.gap import Gap, Measured
from recipes.demo_vlm.table import COLUMNS, FULL, Setting

from chronostat.data.demo.questions import KINDS

COARSE, FINE, REASONING = ("coarse",), ("fine",), ("depth", "both")
_COARSE_LOSS = 0.03  # no lower level of a knob may cost the coarse kinds more


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One demand, whether it is met, and the number that says so."""

    demand: str
    met: bool
    found: str


def verdicts(task: Measured, found: Sequence[Gap]) -> list[Verdict]:
    """All demands on one trained model."""
    return [*accuracy_verdicts(task), *knob_verdicts(task), *cost_verdicts(task), *worth_verdicts(found)]


def accuracy_verdicts(task: Measured) -> list[Verdict]:
    """The full setting."""
    full = task.accuracy[task.settings.index(FULL)]
    worst = int(full.argmin())
    overall = float(full @ task.weight)
    return [
        Verdict(demand="full: at least 0.95 overall", met=overall >= 0.95, found=f"{overall:.3f}"),
        Verdict(
            demand="full: at least 0.90 on each kind",
            met=bool(full[worst] >= 0.90),
            found=f"{full[worst]:.3f} ({task.kinds[worst]})",
        ),
    ]


def knob_verdicts(task: Measured) -> list[Verdict]:
    """What each knob alone costs in answers, at its lower levels."""
    one_tile, four_tiles, half, one_expert = (
        losses(task, COLUMNS[name]) for name in ("16 tokens", "80 tokens", "4 blocks", "top_k 1")
    )
    fine_one, fine_four = _of(one_tile, FINE), _of(four_tiles, FINE)
    reasoning = sorted(_of(half, REASONING).items(), key=lambda item: -item[1])
    dearest = max(one_expert, key=lambda kind: one_expert[kind])
    return [
        _loss_verdict("tiles: 16 tokens lose at least 25 points on every fine kind", fine_one, min, 0.25),
        _coarse_verdict("tiles: 16 tokens", one_tile),
        _loss_verdict("tiles: 80 tokens lose at least 10 points on a fine kind", fine_four, max, 0.10),
        Verdict(
            demand="depth: 4 of 8 blocks lose at least 10 points on two reasoning kinds",
            met=reasoning[1][1] >= 0.10,
            found=", ".join(f"{100 * loss:.1f} ({kind})" for kind, loss in reasoning if loss >= 0.10) or "none",
        ),
        _coarse_verdict("depth: 4 of 8 blocks", half),
        Verdict(
            demand="experts: top_k 1 loses at least 3 points on a kind",
            met=one_expert[dearest] >= 0.03,
            found=f"{100 * one_expert[dearest]:.1f} ({dearest})",
        ),
        _coarse_verdict("experts: top_k 1", one_expert),
    ]


def cost_verdicts(task: Measured) -> list[Verdict]:
    """What the knobs save."""
    saved = 1 - task.cost[task.settings.index(COLUMNS["top_k 1"])]
    ratio = task.cost.max() / task.cost.min()
    return [
        Verdict(
            demand="experts: top_k 1 saves at least 10 % of prefill", met=bool(saved >= 0.10), found=f"{saved:.1%}"
        ),
        Verdict(
            demand="prefill: slowest setting at least 4 times the fastest",
            met=bool(ratio >= 4),
            found=f"{ratio:.2f} times",
        ),
    ]


def worth_verdicts(found: Sequence[Gap]) -> list[Verdict]:
    """What choosing by kind gains over settings that are the same for all."""
    mean = [gap for gap in found if gap.kind == "mean"]
    deadline = [gap for gap in found if gap.kind == "deadline"]
    good = [gap for gap in mean if gap.by_kind - gap.fixed >= 0.10 and gap.by_kind - gap.mix >= 0.07]
    in_time = [gap for gap in deadline if gap.by_kind - gap.fixed >= 0.02]
    return [
        Verdict(
            demand="worth controlling: by kind 10 points over fixed and 7 over the static mix, at three mean budgets",
            met=len(good) >= 3,
            found=_budgets(good),
        ),
        Verdict(
            demand="worth controlling: by kind 2 points over fixed, at two deadlines",
            met=len(in_time) >= 2,
            found=_budgets(in_time),
        ),
    ]


def losses(task: Measured, setting: Setting) -> dict[str, float]:
    """Accuracy that each kind loses against the full setting."""
    full, other = (task.accuracy[task.settings.index(s)] for s in (FULL, setting))
    # 1.000 - 0.970 is to be 0.03, not 0.03 and a last bit
    return {kind: round(float(a - b), 9) for kind, a, b in zip(task.kinds, full, other, strict=True)}


def _of(by_kind: Mapping[str, float], needs: Sequence[str]) -> dict[str, float]:
    return {kind: value for kind, value in by_kind.items() if KINDS[kind].needs in needs}


def _loss_verdict(demand: str, by_kind: dict[str, float], pick: Callable[..., str], least: float) -> Verdict:
    """Judges the kind that `pick` (`min` or `max`) takes by its loss."""
    kind = pick(by_kind, key=lambda name: by_kind[name])
    return Verdict(demand=demand, met=by_kind[kind] >= least, found=f"{100 * by_kind[kind]:.1f} ({kind})")


def _coarse_verdict(what: str, by_kind: Mapping[str, float]) -> Verdict:
    coarse = _of(by_kind, COARSE)
    worst = max(coarse, key=lambda kind: coarse[kind])
    found = f"{100 * coarse[worst]:.1f} ({worst})"
    return Verdict(demand=f"{what}: coarse kinds lose at most 3 points", met=coarse[worst] <= _COARSE_LOSS, found=found)


def _budgets(found: Sequence[Gap]) -> str:
    return (
        ", ".join(
            f"{gap.budget:.2f} ({100 * (gap.by_kind - gap.fixed):.1f} and {100 * (gap.by_kind - gap.mix):.1f})"
            for gap in found
        )
        or "at none"
    )


def print_verdicts(judged: Sequence[Verdict]) -> None:
    """Prints a line for each demand."""
    for verdict in judged:
        print(f"{'met    ' if verdict.met else 'NOT MET'} {verdict.demand}: {verdict.found}")
