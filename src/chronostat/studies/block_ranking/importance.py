"""What decoder blocks are worth: loss of quality per millisecond saved, and the order that follows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import nn

from chronostat.compare.reasons import that_count
from chronostat.compare.statistics import PairedBootstrap, mean_interval
from chronostat.errors import StoreError, UnlikeConditions
from chronostat.models.identity import unlike
from chronostat.records import Conditions, Estimate, Execution, LatencyMetric, Setting, Source, Trial
from chronostat.runs.store import RunStore

RANKING = "ranking.json"
Method = Literal["one-at-a-time", "greedy"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to rank.

    Attributes:
        method: ``one-at-a-time`` leaves out one block after the other; ``greedy`` takes the one out for good that costs
            least, and measures the rest again.
        samples: most validation samples in each round.
        seconds: of all executions together; a round ends early when its share is over.
        keep: numbers of blocks to keep, in falling order, whose sets are measured in the end; ``greedy`` ends at the
            smallest.
        seed: draws the resamples of the intervals.
    """

    method: Method
    samples: int
    seconds: float
    keep: tuple[int, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class BlockScore:
    """What one block is worth, beside the blocks that were out already.

    Attributes:
        loss: mean quality with the block less mean quality without it, in [-1, 1].
        saved_ms: mean latency with it less without it.
        loss_per_ms: ratio of the two; None where the interval of ``saved_ms`` holds 0, so that it is undecided.
        samples: that were measured with and without it. Those that the machine disturbed are left out, unless they are
            more than half.
        disturbed: samples among them that the machine disturbed.
    """

    block: int
    loss: Estimate
    saved_ms: Estimate
    loss_per_ms: Estimate | None
    samples: int
    disturbed: int


@dataclass(frozen=True, kw_only=True)
class KeptBlocks:
    """A model that keeps some blocks, against the whole one.

    Attributes:
        loss: mean quality of the whole model less that of this one.
        ratio: of the mean latencies, this one by the whole one.
        samples: as of ``BlockScore``.
        disturbed: likewise.
        fresh: whether no sample of these had a part in choosing the blocks.
    """

    keep: int
    skipped: tuple[int, ...]
    loss: Estimate
    ratio: Estimate
    samples: int
    fresh: bool
    disturbed: int = 0


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The decoder blocks of one model, least important first.

    Attributes:
        metric: the latency whose milliseconds are saved.
        order: indices of all blocks that can be skipped.
        refused: the others, with the reason.
        rounds: of each round the scores, best first; ``greedy`` took out the first one of each.
        kept: what is left of quality and latency when only some blocks are kept.
    """

    model: str
    fingerprint: str
    conditions: Conditions
    source: Source
    metric: LatencyMetric
    plan: Plan
    order: tuple[int, ...]
    refused: Mapping[int, str]
    rounds: tuple[tuple[BlockScore, ...], ...]
    kept: tuple[KeptBlocks, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``load_ranking`` reads it back."""
        return asdict(self)


def load_ranking(path: Path, model: nn.Module) -> Ranking:
    """A stored ranking.

    Args:
        path: ``ranking.json``, or the run directory that holds it.
        model: the one that it shall be used for.

    Raises:
        StoreError: there is none, or it is damaged.
        UnlikeConditions: it belongs to another model.
    """
    file = path / RANKING if path.is_dir() else path
    if not file.is_file():
        raise StoreError(f"{path} is no ranking: {file} does not exist; name what chronostat rank-blocks wrote")
    data = RunStore(file.parent).read_json(file.name)
    try:
        ranking = TypeAdapter(Ranking).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(
            f"cannot read {file} as a ranking of blocks: {'.'.join(map(str, first['loc']))}: {first['msg']}; name what "
            "chronostat rank-blocks wrote"
        ) from None
    differing = unlike(ranking.fingerprint, model)
    if differing is not None:
        raise UnlikeConditions(
            f"the ranking in {file} belongs to model {ranking.fingerprint} ({ranking.model}), but this one is another: "
            f"{differing} differ; rank its own blocks with chronostat rank-blocks"
        )
    return ranking


def without(skipped: Sequence[int]) -> Setting:
    """The setting that leaves these blocks out."""
    return Setting(block_skip=tuple(sorted(skipped)))


def score_blocks(
    trials: Sequence[Trial], skipped: Sequence[int], candidates: Sequence[int], metric: LatencyMetric, seed: int
) -> tuple[BlockScore, ...]:
    """Scores of one round, best first.

    Args:
        trials: with the setting of ``skipped`` and, for each candidate, that of ``skipped`` and the candidate.
        skipped: blocks that were out already.
        candidates: blocks to score.
        metric: the latency that counts.
        seed: draws the resamples.

    Returns:
        A score for each candidate that was measured on at least one sample.
    """
    base = without(skipped)
    scores: list[BlockScore] = []
    for block in candidates:
        pairs, disturbed = _pairs(trials, base, without([*skipped, block]), metric)
        if not len(pairs):
            continue
        bootstrap = PairedBootstrap(len(pairs), seed)
        loss, saved_ms = pairs[:, 0] - pairs[:, 2], pairs[:, 1] - pairs[:, 3]
        saved = mean_interval(saved_ms)  # from two samples on; a bootstrap of so few would find savings in noise
        is_decided = saved.low > 0 or saved.high < 0
        scores.append(
            BlockScore(
                block=block,
                loss=bootstrap.bounded(loss, -1.0, 1.0),
                saved_ms=saved,
                loss_per_ms=bootstrap.ratio(loss, saved_ms) if is_decided else None,
                samples=len(pairs),
                disturbed=disturbed,
            )
        )
    typical_ms = math.fsum(score.saved_ms.point for score in scores) / max(len(scores), 1)
    return tuple(sorted(scores, key=lambda score: _price(score, typical_ms)))


def _price(score: BlockScore, typical_ms: float) -> tuple[float, bool, float, int]:
    """What orders blocks: the loss for a saved millisecond.

    Blocks of one model are alike, so one whose saved time is undecided is taken to save what blocks save on average
    (``typical_ms``); of equal prices the decided one comes first, then the one that saves most. A block whose removal
    loses nothing costs nothing; one whose removal takes more time is never worth it.
    """
    undecided = score.loss_per_ms is None
    loss, saved_ms = max(score.loss.point, 0.0), typical_ms if undecided else score.saved_ms.point
    price = loss / saved_ms if saved_ms > 0 else math.inf
    return price, undecided, -score.saved_ms.point, score.block


def score_kept(
    trials: Sequence[Trial], skipped: Sequence[int], blocks: int, metric: LatencyMetric, seed: int, *, fresh: bool
) -> KeptBlocks | None:
    """A set of blocks that are kept, against all of them; None if no sample was measured under both.

    Args:
        trials: with both settings.
        skipped: the blocks that are not kept.
        blocks: how many there are.
        metric: the latency that counts.
        seed: draws the resamples.
        fresh: whether these samples had no part in choosing the blocks.
    """
    pairs, disturbed = _pairs(trials, without(()), without(skipped), metric)
    if not len(pairs):
        return None
    bootstrap = PairedBootstrap(len(pairs), seed)
    return KeptBlocks(
        keep=blocks - len(skipped),
        skipped=tuple(sorted(skipped)),
        loss=bootstrap.bounded(pairs[:, 0] - pairs[:, 2], -1.0, 1.0),
        ratio=bootstrap.ratio(pairs[:, 3], pairs[:, 1]),
        samples=len(pairs),
        fresh=fresh,
        disturbed=disturbed,
    )


def _pairs(
    trials: Sequence[Trial], base: Setting, other: Setting, metric: LatencyMetric
) -> tuple[NDArray[np.float64], int]:
    """Samples that were measured under both settings, and how many of them the machine disturbed.

    Returns:
        Quality and milliseconds under ``base``, then under ``other``, shape [samples, 4]. Where the machine left at
        least half of the samples alone, it is only those.
    """
    rows: list[tuple[float, ...]] = []
    undisturbed: list[bool] = []
    for trial in trials:
        by_setting = {execution.setting: execution for execution in trial.executions}
        both = [by_setting[setting] for setting in (base, other) if setting in by_setting]
        seen = [pair for execution in both if (pair := _seen(execution, metric)) is not None]
        if len(seen) == 2:
            rows.append((*seen[0], *seen[1]))
            undisturbed.append(all(execution.disturbed is None for execution in both))
    calm = np.asarray(undisturbed, dtype=np.bool_)
    counts = that_count(calm)
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4)[counts], int((counts & ~calm).sum())


def _seen(execution: Execution, metric: LatencyMetric) -> tuple[float, float] | None:
    if execution.timing is None or execution.quality is None:
        return None
    return execution.quality, execution.latency_ms(metric)


def spent_s(trials: Sequence[Trial]) -> float:
    """What the requests of these trials took; it is stored, so that every process counts the same."""
    return math.fsum(e.request_ms or 0.0 for trial in trials for e in trial.executions) / 1e3
