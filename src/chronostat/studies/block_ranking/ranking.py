"""Ranking the decoder blocks of one model on its validation split: what is executed, in which order, and when it ends.

Every trial is stored as it ends and everything that is decided follows from stored trials, so a ranking that was killed
goes on where it stopped and comes to the same end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chronostat.config import Config
from chronostat.errors import ConfigError, KnobError, MeasurementError, StoreError
from chronostat.execution.execute import identity
from chronostat.execution.trials import TrialInput
from chronostat.knobs.block_skip import BlockSkip
from chronostat.knobs.space import ActionSpace
from chronostat.models.anatomy import anatomy_of
from chronostat.models.load import Vlm
from chronostat.records import Setting, Trial
from chronostat.runs.session import Session
from chronostat.runs.workload import BareModel, TrialInputs, Workload
from chronostat.studies.block_ranking.importance import (
    RANKING,
    BlockScore,
    KeptBlocks,
    Plan,
    Ranking,
    score_blocks,
    score_kept,
    spent_s,
    without,
)

_LEAST_SAMPLES = 2  # of which there can be an interval
_NAMED = 3  # as many names as a message holds


def _knob(vlm: Vlm | BareModel) -> BlockSkip:
    return BlockSkip.find(vlm.model, vlm.processor)


def ranking_workload(config: Config, vlm: Vlm | BareModel, dataset: TrialInputs) -> Workload:
    """Model, validation samples, and the settings that leave out one block each.

    Raises:
        DataError: there are no validation samples.
        KnobError: the model has no block that can be skipped.
    """
    refused = refused_blocks(vlm)
    free = [block for block in range(len(anatomy_of(vlm.model).blocks)) if block not in refused]
    if not free:
        raise KnobError(f"block_skip: no block of this model can be skipped: {next(iter(refused.values()))}")
    dataset.split("validation")
    space = ActionSpace({"block_skip": [_knob(vlm).full, *((block,) for block in free)]})
    return Workload(config=config, vlm=vlm, dataset=ValidationOnly(dataset), space=space, absent={})


def refused_blocks(vlm: Vlm | BareModel) -> Mapping[int, str]:
    """The blocks that cannot be skipped alone, with the reason."""
    knob = _knob(vlm)
    refused: dict[int, str] = {}
    for block in range(len(anatomy_of(vlm.model).blocks)):
        try:
            knob.check((block,))
        except KnobError as error:
            refused[block] = str(error)
    return refused


class ValidationOnly:
    """The validation split under every name, so that data without other splits can be ranked on."""

    def __init__(self, dataset: TrialInputs) -> None:
        self._dataset = dataset

    def split(self, name: str) -> Sequence[TrialInput]:
        """The validation samples, whatever was asked for."""
        del name
        return self._dataset.split("validation")


def check_plan(plan: Plan, blocks: int, free: int) -> None:
    """Accept a plan for a model with ``blocks`` blocks, ``free`` of which can be skipped.

    Raises:
        ConfigError: a number that is not possible; says what is.
    """
    least = max(1, blocks - free)
    for keep in plan.keep:
        if not least <= keep < blocks:
            raise ConfigError(
                f"--keep {keep}: of the {blocks} blocks of this model {least} to {blocks - 1} can be kept "
                f"({free} can be skipped)"
            )
    if plan.samples < _LEAST_SAMPLES:
        raise ConfigError(f"--samples {plan.samples}: an interval needs at least {_LEAST_SAMPLES} samples")


def rank(session: Session, plan: Plan) -> Ranking:
    """Measure all rounds that are not stored yet, and store the ranking.

    Raises:
        ConfigError: the plan does not fit the model.
        KnobError: fewer blocks can be left out together than the plan asks for.
        MeasurementError: blocks could not be measured; says which and why.
        StoreError: what is stored belongs to another plan, or the run cannot be written.
    """
    refused = refused_blocks(session.workload.vlm)
    blocks = len(anatomy_of(session.workload.vlm.model).blocks)
    free = [block for block in range(blocks) if block not in refused]
    check_plan(plan, blocks, len(free))
    bench = _Bench(session, plan, free, blocks, _knob(session.workload.vlm))
    with session.phase("rank", f"at most {plan.seconds:.0f} s"):
        order, rounds = bench.order()
        kept = bench.kept(order)
    ranking = Ranking(
        model=session.workload.vlm.name,
        fingerprint=session.workload.vlm.fingerprint,
        conditions=session.conditions,
        source=session.source,
        metric=session.metric,
        plan=plan,
        order=order,
        refused=refused,
        rounds=rounds,
        kept=kept,
    )
    session.store.write_json(RANKING, ranking.to_json())
    return ranking


@dataclass(frozen=True)
class _Bench:
    """Executes rounds. Round r has the trials from ``r * samples`` on; the last round measures what is kept."""

    session: Session
    plan: Plan
    free: Sequence[int]
    blocks: int
    knob: BlockSkip

    @property
    def taken(self) -> int:
        """How many blocks the order is decided for by taking them out."""
        return self.blocks - min(self.plan.keep) if self.plan.method == "greedy" and self.plan.keep else 1

    def order(self) -> tuple[tuple[int, ...], tuple[tuple[BlockScore, ...], ...]]:
        """All free blocks, least important first, and the scores of every round."""
        out: list[int] = []
        rounds: list[tuple[BlockScore, ...]] = []
        samples = self.session.samples("validation")[: self.plan.samples]
        for number in range(self.taken):
            candidates = self._candidates(out)
            # full too, so that no anchor is ever due: the settings of a trial shall not depend on the clock
            settings = dict.fromkeys([without(()), without(out), *(without([*out, block]) for block in candidates)])
            trials = self._round(number, samples, list(settings))
            scores = score_blocks(trials, out, candidates, self.session.metric, self.plan.seed)
            _require_all(scores, candidates, trials)
            rounds.append(scores)
            if self.plan.method == "greedy":
                out.append(scores[0].block)
        scored = (score.block for scores in reversed(rounds) for score in scores)
        return tuple(dict.fromkeys([*out, *scored])), tuple(rounds)

    def _candidates(self, out: Sequence[int]) -> list[int]:
        """The blocks that can be left out beside those that are out already.

        Raises:
            KnobError: there is none; says why.
        """
        candidates = [b for b in self.free if b not in out and self.knob.objection_to([*out, b]) is None]
        if not candidates:
            raise self._no_more(out)
        return candidates

    def _no_more(self, out: Sequence[int]) -> KnobError:
        other = next(block for block in self.free if block not in out)
        return KnobError(
            f"block_skip: beside {without(out)} no other block can be left out ({self.knob.objection_to([*out, other])}"
            f"); rank again with --keep {self.blocks - len(out)} or more"
        )

    def kept(self, order: Sequence[int]) -> tuple[KeptBlocks, ...]:
        """The sets of blocks that would be kept, on the samples that follow, or on the same ones if none do."""
        if not self.plan.keep:
            return ()
        everything, count = self.session.samples("validation"), self.plan.samples
        fresh = len(everything) >= count + _LEAST_SAMPLES
        samples = everything[count : 2 * count] if fresh else everything[:count]
        sets = [self.knob.first_of(order, self.blocks - keep) for keep in self.plan.keep]
        for keep, out in zip(self.plan.keep, sets, strict=True):
            if len(out) < self.blocks - keep:
                raise self._no_more(out)
        trials = self._round(self.taken, samples, [without(()), *map(without, sets)])
        kept: list[KeptBlocks] = []
        for out in sets:
            found = score_kept(trials, out, self.blocks, self.session.metric, self.plan.seed, fresh=fresh)
            if found is None:
                raise MeasurementError(f"{without(out)} could not be measured on {len(trials)} samples: {_why(trials)}")
            kept.append(found)
        return tuple(kept)

    def _round(self, number: int, samples: Sequence[TrialInput], settings: Sequence[Setting]) -> list[Trial]:
        """The trials of one round; those that are stored are not executed again."""
        runner, store = self.session.runner, self.session.store
        stored = {trial.index: trial for trial in store.trials("rank")}
        rounds = self.taken + bool(self.plan.keep)
        trials: list[Trial] = []
        for position, trial_input in enumerate(samples):
            used = spent_s(trials) * rounds / self.plan.seconds
            if used >= 1 and position >= _LEAST_SAMPLES:
                break
            index = number * self.plan.samples + position
            request = runner.request(trial_input)
            trial = stored.get(index) or runner.run("rank", index, request, settings)
            if {e.setting for e in trial.executions} != set(settings) or trial.sample_id != identity(request)[
                "sample_id"
            ]:
                raise StoreError(
                    f"stored trial {index} of {store.folder} belongs to another ranking; begin a new run directory"
                )
            trials.append(trial)
            done = max((position + 1) / len(samples), min(used, 1.0))
            note = f"round {number + 1} of {rounds}, {position + 1} of {len(samples)} samples"
            self.session.progress.advance((number + done) / rounds, note)
        return trials


def _require_all(scores: Sequence[BlockScore], candidates: Sequence[int], trials: Sequence[Trial]) -> None:
    """Accept a round in which every block was measured.

    Raises:
        MeasurementError: some were not, on no sample at all.
    """
    missing = sorted(set(candidates) - {score.block for score in scores})
    if missing:
        named = ", ".join(map(str, missing[:_NAMED]))
        raise MeasurementError(f"blocks {named} could not be ranked on {len(trials)} samples: {_why(trials)}")


def _why(trials: Sequence[Trial]) -> str:
    """The first reason why something could not be measured."""
    reasons = [e.invalid for trial in trials for e in trial.executions if e.invalid is not None]
    return reasons[0] if reasons else "the answers have no quality; the samples need reference answers"
