"""What is said of the judged samples: scores, verdicts, kinds of question, the noise floor."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chronostat.compare.reasons import kind_of
from chronostat.compare.statistics import PairedBootstrap, dependence_p_value
from chronostat.control.controller import Controller
from chronostat.policy.rivals import Rivals
from chronostat.records import Budget, Execution, PolicyScore
from chronostat.runs.session import Session
from chronostat.runs.store import (
    Counted,
    FixedScore,
    KindScore,
    KindsDiffer,
    NoiseFloor,
    PolicyComparison,
    Selected,
    Validation,
)
from chronostat.validation.policies import Flags, Played, Pool, score
from chronostat.validation.verdicts import Name, Pairs, Verdicts, pairs_of, self_comparison


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What was measured on the judged samples.

    Attributes:
        kinds: kind of question of each sample of the pool, length n.
        settings: for each budget the controller's choice on each sample, shape [n].
        controller_ms: for each budget what choosing cost, shape [n].
        rivals: for each budget the policies that need no looking.
        beside: by name and budget what other policies that look chose on each sample, shape [n].
    """

    pool: Pool
    kinds: tuple[str, ...]
    settings: dict[Budget, np.ndarray]
    controller_ms: dict[Budget, np.ndarray]
    rivals: Mapping[Budget, Rivals]
    beside: Mapping[tuple[str, Budget], np.ndarray]

    def controller(self, budget: Budget) -> Played:
        """What the controller did under a budget."""
        return self.pool.played(self.settings[budget], self.controller_ms[budget])

    def others(self, budget: Budget) -> dict[str, Played]:
        """What each rival of the controller did under a budget."""
        rivals = self.rivals[budget]
        others = {"best fixed": self.pool.fixed(rivals.fixed)}
        if rivals.mix is not None:
            others["static mix"] = self.pool.mix(rivals.mix.low, rivals.mix.high, rivals.mix.share)
        others["full"] = self.pool.fixed(0)
        for (name, judged), settings in self.beside.items():
            if judged == budget:  # charged what the controller's choice took
                others[name] = self.pool.played(settings, self.controller_ms[budget])
        return others

    def counting(self, budget: Budget) -> Flags:
        """The samples that count under a budget, shape [n]: under a deadline those that can meet it."""
        if budget.kind == "mean":
            return np.ones(len(self.pool), dtype=np.bool_)
        return self.pool.can_meet(budget.ms(self.pool.full_ms))


def compared(judged: Judged) -> dict[Name, Pairs]:
    """The controller against every rival, by budget and policy."""
    return {
        (budget, name): pairs_of(judged.controller(budget), played, judged.counting(budget))
        for budget in judged.settings
        for name, played in judged.others(budget).items()
    }


def summary(session: Session, controller: Controller, judged: Judged, verdicts: Verdicts, ended: str) -> Validation:
    """Everything that ``validation.json`` holds.

    Args:
        session: what measured.
        controller: that was judged.
        judged: what was measured on the judged samples.
        verdicts: after the last look.
        ended: why judging ended, in words.
    """
    called = sum(execution.called for trial in session.store.trials("test") for execution in trial.executions)
    bootstrap = PairedBootstrap(len(judged.pool), session.config.seed)
    budgets = list(judged.settings)
    means = sorted([each for each in budgets if each.kind == "mean"] or budgets, key=lambda each: each.fraction)
    return Validation(
        scores=tuple(s for budget in budgets for s in _scores(session, judged, budget, bootstrap)),
        samples=len(judged.pool),
        fixed=tuple(_fixed_scores(session, judged.pool, bootstrap)),
        by_kind=tuple(s for budget in budgets for s in _kind_scores(session, judged, budget)),
        selection={str(budget): _selected(session, controller, judged, budget) for budget in budgets},
        kinds_differ=_kinds_differ(session, judged, means[len(means) // 2]),
        counted=Counted(executions=called, generate_calls=session.store.metadata["phases"]["test"]["generate_calls"]),
        comparisons=tuple(_comparisons(judged, verdicts)),
        noise=_noise_floor(session),
        stop=ended,
        metric=session.metric,
        source=session.source,
        conditions=session.conditions,
    )


def _selected(session: Session, controller: Controller, judged: Judged, budget: Budget) -> Selected:
    rivals = judged.rivals[budget]
    return Selected(
        setting=str(session.space.settings[rivals.fixed]),
        expected=rivals.accuracy,
        shortfall=rivals.shortfall,
        learned=controller.policy.gains[budget.kind].is_learned(budget.fraction),
    )


def _scores(session: Session, judged: Judged, budget: Budget, bootstrap: PairedBootstrap) -> list[PolicyScore]:
    limit_ms = budget.ms(judged.pool.full_ms)
    can = judged.counting(budget)
    ours = judged.controller(budget)
    return [
        score("controller", ours, budget, limit_ms, can, session.space, bootstrap),
        *(
            score(name, played, budget, limit_ms, can, session.space, bootstrap, against=ours)
            for name, played in judged.others(budget).items()
        ),
    ]


def _comparisons(judged: Judged, verdicts: Verdicts) -> Iterator[PolicyComparison]:
    for name, pairs in compared(judged).items():
        budget, policy = name
        gain, accuracy, latency = verdicts.comparison(name, pairs)
        yield PolicyComparison(budget=str(budget), policy=policy, gain=gain, accuracy=accuracy, latency=latency)


def _noise_floor(session: Session) -> NoiseFloor | None:
    """From the samples on which ``full`` ran twice; in the order it ran."""
    full = session.space.full
    twice = [[e for e in trial.executions if e.setting == full] for trial in session.store.trials("test")]
    pairs = [pair for pair in twice if len(pair) > 1]
    if not pairs:
        return None
    reasons = Counter(kind_of(why) for why in map(_why_left_out, pairs) if why is not None)
    used = [[e.latency_ms(session.metric) for e in pair[:2]] for pair in pairs if _why_left_out(pair) is None]
    first_ms, second_ms = np.array(used, dtype=np.float64).reshape(-1, 2).T
    spread = np.abs(np.log(second_ms / first_ms))
    margin = session.config.validation.margin
    return NoiseFloor(
        comparison=self_comparison(first_ms, second_ms, session.metric, margin),
        spread=float(np.expm1(np.median(spread))) if len(spread) else float("nan"),
        asked=len(pairs),
        left_out=dict(reasons),
    )


def _why_left_out(pair: Sequence[Execution]) -> str | None:
    return next((why for execution in pair for why in (execution.invalid, execution.disturbed) if why), None)


def _fixed_scores(session: Session, pool: Pool, bootstrap: PairedBootstrap) -> list[FixedScore]:
    """Of the settings that were measured on every sample."""
    scores: list[FixedScore] = []
    for position in np.flatnonzero(np.isfinite(pool.quality).all(axis=0)).tolist():
        played = pool.fixed(position)
        scores.append(
            FixedScore(
                setting=str(session.space.settings[position]),
                n=len(pool),
                accuracy=bootstrap.bounded(played.accuracy, 0.0, 1.0),
                mean_ms=bootstrap.mean(played.mean_ms, played.timed),
                p95_ms=played.quantile_ms(0.95),
            )
        )
    return scores


def _kind_scores(session: Session, judged: Judged, budget: Budget) -> list[KindScore]:
    policies = {
        "controller": judged.controller(budget),
        "best fixed": judged.pool.fixed(judged.rivals[budget].fixed),
    }
    scores: list[KindScore] = []
    for kind in sorted(set(judged.kinds)):
        rows = np.array([each == kind for each in judged.kinds])
        for name, played in policies.items():
            used = Counter(str(session.space.settings[i]) for i in played.settings[0, rows].tolist())
            n = int(rows.sum())
            scores.append(
                KindScore(
                    kind=kind,
                    budget=str(budget),
                    policy=name,
                    n=n,
                    accuracy=float(played.accuracy[rows].mean()),
                    setting_shares={setting: count / n for setting, count in used.most_common()},
                )
            )
    return scores


def _kinds_differ(session: Session, judged: Judged, budget: Budget) -> KindsDiffer:
    """Whether what the controller chooses depends on the kind of question, which it does not see."""
    choices = judged.settings[budget].tolist()
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for kind, choice in zip(judged.kinds, choices, strict=True):
        by_kind[kind][str(session.space.settings[choice])] += 1
    return KindsDiffer(
        budget=str(budget),
        p_value=dependence_p_value(judged.kinds, choices, session.config.seed),
        most_chosen={kind: counts.most_common(1)[0][0] for kind, counts in sorted(by_kind.items())},
    )
