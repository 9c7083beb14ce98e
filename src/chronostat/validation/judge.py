"""The frozen controller against fixed settings on samples that neither has seen, measured afresh and interleaved."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chronostat.compare.sequential import is_look
from chronostat.control.controller import Controller
from chronostat.errors import ConfigError, MeasurementError, UnlikeConditions
from chronostat.execution.execute import Request, identity
from chronostat.execution.trials import TrialInput
from chronostat.policy.rivals import Rivals, rivals_of
from chronostat.records import Budget, Decision
from chronostat.runs.plan import LEAST_JUDGED, executions_of_a_trial
from chronostat.runs.session import Session, executions
from chronostat.runs.store import Validation
from chronostat.runs.store.run import VALIDATION
from chronostat.validation.beside import Beside, beside
from chronostat.validation.policies import Measurements
from chronostat.validation.summary import Judged, compared, summary
from chronostat.validation.verdicts import Verdicts

_LEAST_SAMPLES = 2
_LEAST_BOX_S = 1e-3


def validate(session: Session, controller: Controller) -> Validation:
    """Judge once on the test split; stored as ``validation.json``.

    Raises:
        BudgetError: no setting can meet one of the budgets; nothing is executed then.
        ConfigError: no budgets, or too few samples to judge on; nothing is executed then.
        DataError: there are no test samples; nothing is executed then.
        UnlikeConditions: the controller's budgets limit another latency; nothing is executed then.
        MeasurementError: too few samples could be measured.
    """
    budgets = judged_budgets(session)
    _check(session, controller, budgets)
    if session.runner.drift is None and "calibration" in session.store.metadata:
        session.follow_drift(session.store.metadata["calibration"]["full_ms"])
    judging = _Judging(session=session, controller=controller, budgets=budgets)
    judged = judging.run()
    validation = summary(session, controller, judged, judging.verdicts, judging.ended)
    session.store.write_json(VALIDATION, validation.to_json())
    return validation


def judged_budgets(session: Session) -> tuple[Budget, ...]:
    """Each budget once; what is stored tells them apart by their names.

    Raises:
        ConfigError: no budgets, or too few samples to judge on.
    """
    budgets = tuple(dict.fromkeys(session.config.validation.budgets()))
    if not budgets:
        raise ConfigError("validation.mean_budgets and validation.deadlines are both empty; name a budget to judge")
    name, n = Counter(map(str, budgets)).most_common(1)[0]
    if n > 1:
        raise ConfigError(f"validation: {n} budgets are called {name!r}; let them differ by at least 0.01")
    if len(session.samples("test")) < _LEAST_SAMPLES:
        raise ConfigError(f"there is one test sample; intervals need at least {_LEAST_SAMPLES}, add some")
    return budgets


def _check(session: Session, controller: Controller, budgets: Sequence[Budget]) -> None:
    if controller.metric != session.metric:
        raise UnlikeConditions(
            f"the controller was trained on {controller.metric}, this run measures {session.metric}; train one for it"
        )
    controller.choose_each(session.runner.request(session.samples("validation")[0]), budgets, session.clock, 0.5)


@dataclass(kw_only=True)
class _Judging:
    """The test split, sample by sample: every rival's setting and the controller's choice for every budget.

    Attributes:
        rivals: for each budget the policies that need no looking.
        beside: policies of other origin, by name.
        verdicts: of all comparisons so far.
        ended: why there are no more samples.
    """

    session: Session
    controller: Controller
    budgets: Sequence[Budget]
    ended: str = ""
    rivals: dict[Budget, Rivals] = field(init=False)
    decisions: dict[Budget, list[Decision]] = field(init=False)
    table: Measurements = field(init=False)
    verdicts: Verdicts = field(init=False)
    beside: dict[str, Beside] = field(init=False)
    beside_chose: dict[tuple[str, Budget], list[int]] = field(init=False)
    _last_look: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        session, config = self.session, self.session.config.validation
        self.rivals = {budget: rivals_of(self.controller.policy, budget) for budget in self.budgets}
        self.decisions = {budget: [] for budget in self.budgets}
        self.beside = beside(session, self.controller)
        self.beside_chose = {(name, budget): [] for name in self.beside for budget in self.budgets}
        self.table = Measurements(space=session.space, metric=session.metric)
        self.verdicts = Verdicts(
            metric=session.metric, stop=config.stop, margin=config.margin, seed=session.config.seed
        )

    @property
    def fixed(self) -> list[int]:
        """Positions of the settings that run on every sample, ``full`` first."""
        mixes = [each.mix for each in self.rivals.values() if each.mix is not None]
        used = [*(each.fixed for each in self.rivals.values()), *(i for mix in mixes for i in (mix.low, mix.high))]
        return list(dict.fromkeys([0, *sorted(used)]))

    def run(self) -> Judged:
        """Measure until the samples or the time end, or everything is decided if that is asked for.

        Raises:
            MeasurementError: too few samples could be measured.
        """
        session, config = self.session, self.session.config.validation
        runner, samples = session.runner, session.samples("test")[: config.samples]
        box_s = math.inf if config.seconds is None else config.seconds
        left_s = min(box_s, session.time_left_s())
        least = _LEAST_SAMPLES if left_s == box_s else min(LEAST_JUDGED, len(samples))
        self.ended = "all samples were judged"
        with session.phase("test", executions(len(samples) * executions_of_a_trial(session.workload, "test"))):
            start_s = runner.elapsed_s
            for index, sample in enumerate(samples):
                used = (runner.elapsed_s - start_s) / max(left_s, _LEAST_BOX_S)
                if used >= 1 and index >= least:
                    self.ended = "the time box ended"
                    break
                self._judge(index, sample)
                share = min(max(used, (index + 1) / len(samples)), 1.0)
                session.progress.advance(share, f"{index + 1} samples")
                if self._is_decided(index + 1, share):
                    self.ended = "every verdict was known"
                    break
        judged = self._judged()
        self.verdicts.look(compared(judged), share=1.0, final=True)
        return judged

    def _judge(self, index: int, sample: TrialInput) -> None:
        session, every = self.session, self.session.config.validation.aa_every
        every = 0 if session.source == "estimated" else every  # estimates repeat themselves, whatever the machine does
        request, rng = session.runner.request(sample), np.random.default_rng([session.config.seed, index])
        shuffled, coin = [self.budgets[i] for i in rng.permutation(len(self.budgets))], float(rng.random())
        chosen = _decide(session, self.controller, request, shuffled, coin)
        others = self._decide_beside(sample, coin)
        # policies that choose the same setting share its answer, also a sampled one: there is no difference to measure
        played = [session.space.settings[i] for i in (*self.fixed, *others)]
        settings = dict.fromkeys([*played, *(each.setting for each in chosen)])
        again = [session.space.full] if every and index % every == 0 else []
        self.table.add(session.runner.run("test", index, request, list(settings), again=again))
        session.store.append(chosen)
        for decision in chosen:
            self.decisions[decision.budget].append(decision)

    def _decide_beside(self, sample: TrialInput, coin: float) -> set[int]:
        """What the policies beside the controller choose, by the toss of the same coin."""
        for name, policy in self.beside.items():
            chosen = policy.decide(sample, self.session.observe(sample), self.budgets, coin)
            for budget, setting in zip(self.budgets, chosen, strict=True):
                self.beside_chose[name, budget].append(setting)
        return {made[-1] for made in self.beside_chose.values()}

    def _is_decided(self, samples: int, share: float) -> bool:
        if self.session.config.validation.stop != "decided" or not is_look(samples, self._last_look):
            return False
        self._last_look = samples
        judged = self._judged(least=0)
        return bool(len(judged.pool)) and self.verdicts.look(compared(judged), share=share)

    def _judged(self, least: int = _LEAST_SAMPLES) -> Judged:
        return _judged(self, least)


def _decide(
    session: Session, controller: Controller, request: Request, shuffled: Sequence[Budget], coin: float
) -> list[Decision]:
    """One decision for each budget, in random order: the first one finds the caches cold."""
    choices = controller.choose_each(request, shuffled, session.clock, coin)
    return [
        Decision(**identity(request), budget=budget, setting=choice.setting, controller_ms=choice.controller_ms)
        for budget, choice in zip(shuffled, choices, strict=True)
    ]


def _judged(judging: _Judging, least: int) -> Judged:
    """Only the samples on which every policy could be measured are compared."""
    table, decisions, space = judging.table, judging.decisions, judging.session.space
    settings = {b: np.array([space.index(d.setting) for d in made]) for b, made in decisions.items()}
    beside = {name: np.array(made) for name, made in judging.beside_chose.items()}
    pool = table.complete(judging.fixed)
    measured = np.isfinite(np.array(table.quality))
    everywhere = [
        np.take_along_axis(measured, chosen[:, None], axis=1)[:, 0] for chosen in (*settings.values(), *beside.values())
    ]
    rows = pool.rows[np.all([finite[pool.rows] for finite in everywhere], axis=0)]
    if len(rows) < least:
        raise MeasurementError(
            f"only {len(rows)} of {len(table.quality)} test samples could be measured under every policy: executions "
            "failed, or answers could not be scored; see the failures in the run"
        )
    return Judged(
        pool=table.at(rows),
        kinds=tuple(next(iter(decisions.values()))[i].kind or "any" for i in rows),
        settings={budget: chosen[rows] for budget, chosen in settings.items()},
        controller_ms={b: np.array([d.controller_ms for d in made])[rows] for b, made in decisions.items()},
        rivals=judging.rivals,
        beside={name: chosen[rows] for name, chosen in beside.items()},
    )
