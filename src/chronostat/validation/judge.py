"""The frozen controller against fixed settings on samples that neither has seen, measured afresh and interleaved."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chronostat.control.controller import FOLDER, Controller
from chronostat.errors import ConfigError, MeasurementError, UnlikeConditions
from chronostat.execution import Request, identity
from chronostat.measure.statistics import PairedBootstrap, dependence_p_value
from chronostat.records import Budget, Decision, PolicyScore
from chronostat.session import Session
from chronostat.store import Counted, FixedScore, KindScore, KindsDiffer, Selected, Validation
from chronostat.store.run import VALIDATION
from chronostat.validation.policies import Measurements, Played, Pool, score
from chronostat.validation.selection import Selection, full_ms, select_rivals

_LEAST_SAMPLES = 2


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What was measured on the judged samples.

    Attributes:
        kinds: kind of question of each sample of the pool, length n.
        settings: for each budget the controller's choice on each sample, shape [n].
        controller_ms: for each budget what choosing cost, shape [n].
    """

    pool: Pool
    kinds: tuple[str, ...]
    settings: dict[Budget, np.ndarray]
    controller_ms: dict[Budget, np.ndarray]

    def controller(self, budget: Budget) -> Played:
        """What the controller did under a budget."""
        return self.pool.played(self.settings[budget], self.controller_ms[budget])


def validate(session: Session, controller: Controller) -> Validation:
    """Choose the rivals on the validation split, then judge once on the test split; stored as ``validation.json``.

    What the settings took on the validation split holds the controller to its budgets as it does the rivals: a machine
    is not the same minutes after the training. The renewed controller is stored.

    Raises:
        BudgetError: no setting can meet one of the budgets; nothing is executed then.
        ConfigError: no budgets, or too few samples to judge on; nothing is executed then.
        DataError: there are no test samples; nothing is executed then.
        UnlikeConditions: the controller's budgets limit another latency; nothing is executed then.
        MeasurementError: too few samples could be measured.
    """
    budgets = _budgets(session)
    _check(session, controller, budgets)
    selection = select_rivals(
        session, budgets, lambda request: controller.choose(request, budgets[0], session.clock).controller_ms
    )
    renewed = controller.renewed(
        selection.latency_means, session.unseen_observations(), selection.full_ms, session.material.vlm.model
    )
    renewed.save(session.store.folder / FOLDER)
    judged = _measure(session, renewed, budgets, selection)
    validation = _summary(session, selection, judged)
    session.store.write_json(VALIDATION, validation.to_json())
    return validation


def _budgets(session: Session) -> tuple[Budget, ...]:
    """Each budget once; what is stored tells them apart by their names."""
    budgets = tuple(dict.fromkeys(session.config.validation.budgets()))
    if not budgets:
        raise ConfigError("validation.mean_budgets and validation.deadlines are both empty; name a budget to judge")
    name, n = Counter(map(str, budgets)).most_common(1)[0]
    if n > 1:
        raise ConfigError(f"validation: {n} budgets are called {name!r}; let them differ by at least 0.01")
    return budgets


def _check(session: Session, controller: Controller, budgets: Sequence[Budget]) -> None:
    if controller.metric != session.metric:
        raise UnlikeConditions(
            f"the controller was trained on {controller.metric}, this run measures {session.metric}; train one for it"
        )
    asked, there = session.config.validation.samples, len(session.samples("test"))
    if min(asked, there) < _LEAST_SAMPLES:
        raise ConfigError(
            f"validation.samples = {asked} of {there} test samples; intervals need at least {_LEAST_SAMPLES}"
        )
    controller.choose_each(session.runner.request(session.samples("validation")[0]), budgets, session.clock)


def _measure(session: Session, controller: Controller, budgets: Sequence[Budget], selection: Selection) -> Judged:
    """Each sample under every rival's setting and the controller's choice for every budget, in random order."""
    table = Measurements(space=session.space, metric=session.metric)
    decisions: dict[Budget, list[Decision]] = {budget: [] for budget in budgets}
    fixed = [session.space.settings[i] for i in dict.fromkeys([0, *selection.settings])]
    runner, config = session.runner, session.config.validation
    samples = session.samples("test")[: config.samples]
    box_s = session.box_s(config.seconds)
    with session.phase("test", box_s):
        start_s = runner.elapsed_s
        for index, sample in enumerate(samples):
            used = (runner.elapsed_s - start_s) / box_s
            if used >= 1 and index >= _LEAST_SAMPLES:
                break
            request = runner.request(sample)
            chosen = _decide(session, controller, request, budgets, index)
            table.add(runner.run("test", index, request, [*fixed, *(decision.setting for decision in chosen)]))
            session.store.append(chosen)
            for decision in chosen:
                decisions[decision.budget].append(decision)
            session.progress.advance(max(used, (index + 1) / len(samples)), f"{index + 1} samples")
    return _judged(session, table, decisions, fixed=[session.space.index(setting) for setting in fixed])


def _decide(
    session: Session, controller: Controller, request: Request, budgets: Sequence[Budget], index: int
) -> list[Decision]:
    """One decision for each budget, in random order: the first one finds the caches cold."""
    order = np.random.default_rng([session.config.seed, index]).permutation(len(budgets))
    shuffled = [budgets[i] for i in order]
    return [
        Decision(**identity(request), budget=budget, setting=choice.setting, controller_ms=choice.controller_ms)
        for budget, choice in zip(shuffled, controller.choose_each(request, shuffled, session.clock), strict=True)
    ]


def _judged(session: Session, table: Measurements, decisions: dict[Budget, list[Decision]], fixed: list[int]) -> Judged:
    """Only the samples on which every policy could be measured are compared."""
    settings = {b: np.array([session.space.index(d.setting) for d in made]) for b, made in decisions.items()}
    pool = table.complete(fixed)
    measured = np.isfinite(np.array(table.quality))
    everywhere = [np.take_along_axis(measured, chosen[:, None], axis=1)[:, 0] for chosen in settings.values()]
    rows = pool.rows[np.all([finite[pool.rows] for finite in everywhere], axis=0)]
    if len(rows) < _LEAST_SAMPLES:
        raise MeasurementError(
            f"only {len(rows)} of {len(table.quality)} test samples could be measured under every policy: executions "
            "failed, or answers could not be scored; see the failures in the run"
        )
    return Judged(
        pool=Pool(quality=np.array(table.quality)[rows], latency_ms=np.array(table.latency_ms)[rows], rows=rows),
        kinds=tuple(next(iter(decisions.values()))[i].kind or "any" for i in rows),
        settings={budget: chosen[rows] for budget, chosen in settings.items()},
        controller_ms={b: np.array([d.controller_ms for d in made])[rows] for b, made in decisions.items()},
    )


def _summary(session: Session, selection: Selection, judged: Judged) -> Validation:
    counts = session.store.facts["phases"]
    phases = [counts[phase] for phase in ("select", "test")]
    stored = sum(len(trial.executions) for phase in ("select", "test") for trial in session.store.trials(phase))
    bootstrap = PairedBootstrap(len(judged.pool), session.config.seed)
    budgets = list(judged.settings)
    means = [budget for budget in budgets if budget.kind == "mean"] or budgets
    return Validation(
        scores=tuple(s for budget in budgets for s in _scores(session, selection, judged, budget, bootstrap)),
        samples=len(judged.pool),
        fixed=tuple(_fixed_scores(session, judged.pool, bootstrap)),
        by_kind=tuple(s for budget in budgets for s in _kind_scores(session, selection, judged, budget)),
        selection={
            str(budget): Selected(
                setting=str(session.space.settings[rivals.fixed]),
                n=selection.samples,
                validation_accuracy=rivals.accuracy,
            )
            for budget, rivals in selection.rivals.items()
        },
        kinds_differ=_kinds_differ(session, judged, means[len(means) // 2]),
        counted=Counted(executions=stored, generate_calls=sum(phase["generate_calls"] for phase in phases)),
        metric=session.metric,
        source=session.source,
        conditions=session.conditions,
    )


def _scores(
    session: Session, selection: Selection, judged: Judged, budget: Budget, bootstrap: PairedBootstrap
) -> list[PolicyScore]:
    pool, rivals = judged.pool, selection.rivals[budget]
    limit_ms = budget.ms(full_ms(pool))
    ours = judged.controller(budget)
    others = {"best fixed": pool.fixed(rivals.fixed)}
    if rivals.mix is not None:
        others["static mix"] = pool.mix(rivals.mix.low, rivals.mix.high, rivals.mix.share)
    others["full"] = pool.fixed(0)
    return [
        score("controller", ours, budget, limit_ms, session.space, bootstrap),
        *(
            score(name, played, budget, limit_ms, session.space, bootstrap, against=ours)
            for name, played in others.items()
        ),
    ]


def _fixed_scores(session: Session, pool: Pool, bootstrap: PairedBootstrap) -> list[FixedScore]:
    """Of the settings that were measured on every sample."""
    scores: list[FixedScore] = []
    for position in np.flatnonzero(np.isfinite(pool.quality).all(axis=0)).tolist():
        played = pool.fixed(position)
        scores.append(
            FixedScore(
                setting=str(session.space.settings[position]),
                n=len(pool),
                accuracy=bootstrap.mean(played.accuracy),
                mean_ms=bootstrap.mean(played.mean_ms),
                p95_ms=played.quantile_ms(0.95),
            )
        )
    return scores


def _kind_scores(session: Session, selection: Selection, judged: Judged, budget: Budget) -> list[KindScore]:
    policies = {
        "controller": judged.controller(budget),
        "best fixed": judged.pool.fixed(selection.rivals[budget].fixed),
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
