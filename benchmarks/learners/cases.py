"""What became of one run? A world and a seed, every learner on it, at every number of executions."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.learners.judge import judge
from benchmarks.learners.plain_library import Follower, PricedScores
from benchmarks.learners.replay import Replay, Trained
from benchmarks.learners.table import Table
from benchmarks.learners.truth import truth_of
from benchmarks.learners.world import World
from chronostat.config import Config, overridden
from chronostat.policy.rivals import rivals_of
from chronostat.runs.training import policy_of

LEARNERS = ("direct", "rloo")
LIBRARY = "vowpalwabbit"  # learns from what `direct` executed
Row = dict[str, Any]
_MOST_WORLDS = 1_000
_tables: list[Table] = []  # the one of a worker process


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        world: seed of the world.
        seed: of the run.
        noise: name of ``NOISES``.
        learner: one of ``LEARNERS``.
        sizes: numbers of training executions, ascending.
        library: whether the plain library learns from the same executions.
        overrides: of the configuration, ``key=value``.
    """

    world: int
    seed: int
    noise: str
    learner: str
    sizes: tuple[int, ...]
    library: bool
    overrides: tuple[str, ...] = ()


def rows_of(table: Table, case: Case) -> list[Row]:
    """A row for each policy, size and budget: the truth about it, and about what could be gained."""
    # a seed of its own in each world: two worlds that draw the same requests say less than they seem to
    seed = case.seed * _MOST_WORLDS + case.world
    config = overridden(Config(seed=seed), (f"train.learner={case.learner}", *case.overrides))
    world = World.of(table, case.noise, case.world)
    library = Follower(world) if case.library else None
    rows: list[Row] = []
    for trained in Replay(world, config).runs(case.sizes):
        rows += _rows_at(world, config, trained, library)
    names = {"world": case.world, "seed": case.seed, "noise": case.noise}
    return [names | row for row in rows]


def _rows_at(world: World, config: Config, trained: Trained, library: Follower | None) -> Iterator[Row]:
    legal = np.ones(len(world.table.space), dtype=np.bool_)
    policy = policy_of(config, trained.evidence, trained.learner, legal)
    priced = None
    if library is not None:
        priced = PricedScores(world, trained, library.scores(trained), policy.margin)
    overall = world.right.sum(axis=0)
    for budget in config.validation.budgets():
        truth = asdict(truth_of(world, budget))
        row: Row = {"size": trained.executions, "kind": budget.kind, "budget": budget.fraction, **truth}
        row["chosen_fixed"] = float(overall[rivals_of(policy, budget).fixed])
        yield row | {
            "policy": config.train.learner,
            **asdict(judge(world, policy, budget)),
        }
        if priced is not None:
            yield row | {"policy": LIBRARY, **asdict(priced.judge(budget))}


def begin(table: Table) -> None:
    """Make this process a worker on a table."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    _tables.append(table)


def rows_in_process(case: Case) -> list[Row]:
    """``rows_of`` in a worker."""
    return rows_of(_tables[0], case)
