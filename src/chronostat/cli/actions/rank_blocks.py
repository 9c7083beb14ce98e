"""What chronostat rank-blocks does: decoder blocks ordered by importance."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from chronostat.cli.console import Bars
from chronostat.config import Config
from chronostat.errors import StoreError
from chronostat.models.anatomy import anatomy_of
from chronostat.models.load import Vlm
from chronostat.records import Estimate
from chronostat.report.text import ms_interval, points_interval
from chronostat.runs.session import Session, begin_with, reopen_with
from chronostat.runs.store import RunStore
from chronostat.runs.stored import stored_config
from chronostat.runs.workload import load_both
from chronostat.studies.block_ranking.importance import RANKING, BlockScore, KeptBlocks, Plan, Ranking
from chronostat.studies.block_ranking.ranking import check_plan, rank, ranking_workload, refused_blocks


def rank_blocks(config: Config, plan: Plan, folder: Path, command: str, out: Console) -> None:
    """A new ranking of the decoder blocks."""
    dataset, vlm = load_both(config)
    plan = _with_sets(plan, vlm)
    workload = ranking_workload(config, vlm, dataset)
    opened = begin_with(workload, run_dir=folder, command=command, progress=Bars(out), ranking=asdict(plan))
    with opened as session:
        _rank(session, plan, folder, out)


def resume_ranking(folder: Path, data: Path | None, out: Console) -> None:
    """The rest of a ranking that ended early."""
    store = RunStore.open(folder)
    plan = _stored_plan(store)
    if store.holds(RANKING):
        raise StoreError(f"{folder} has finished: its ranking is in {folder / RANKING}")
    config = stored_config(store, data)
    dataset, vlm = load_both(config)
    workload = ranking_workload(config, vlm, dataset)
    with reopen_with(workload, store, progress=Bars(out)) as session:
        _rank(session, plan, folder, out)


def _with_sets(plan: Plan, vlm: Vlm) -> Plan:
    """Three quarters and half of the blocks are kept where nothing else was asked for."""
    blocks = len(anatomy_of(vlm.model).blocks)
    free = blocks - len(refused_blocks(vlm))
    if not plan.keep:
        wanted = {blocks - blocks // 4, blocks - blocks // 2}
        possible = sorted((keep for keep in wanted if max(1, blocks - free) <= keep < blocks), reverse=True)
        plan = replace(plan, keep=tuple(possible))
    check_plan(plan, blocks, free)
    return plan


def _stored_plan(store: RunStore) -> Plan:
    try:
        return TypeAdapter(Plan).validate_python(store.metadata["ranking"])
    except KeyError:
        raise StoreError(f"{store.folder} holds no ranking of blocks; name the run directory of rank-blocks") from None
    except ValidationError as error:
        raise StoreError(f"the plan in {store.folder} cannot be used: {error.errors()[0]['msg']}") from None


def _rank(session: Session, plan: Plan, folder: Path, out: Console) -> None:
    ranking = rank(session, plan)
    session.store.compact()
    for table in (scores_table(ranking), kept_table(ranking.kept)):
        if table.row_count:
            out.print(table)
    for block, reason in ranking.refused.items():
        out.print(f"block {block} cannot be skipped: {reason}")
    doubt = doubt_of(ranking)
    if doubt is not None:
        out.print(doubt)
    undecided = [score.block for score in ranking.rounds[-1] if score.loss_per_ms is None]
    if undecided:
        out.print(f"blocks {', '.join(map(str, undecided))}: it is undecided whether they save time; raise --seconds")
    out.print(f"ranking: {folder / RANKING}")
    out.print("least important first; for a configuration:")
    out.print(f"[knobs]\nblock_order = {list(ranking.order)}")


def doubt_of(ranking: Ranking) -> str | None:
    """What to say where samples that the machine disturbed had to be used, in any round; None where they had not."""
    measured = [*(score for scores in ranking.rounds for score in scores), *ranking.kept]
    worst = max(measured, key=lambda each: each.disturbed / each.samples)
    if not worst.disturbed:
        return None
    return (
        f"the machine disturbed {worst.disturbed} of {worst.samples} samples, too many to leave out, so that saved "
        "times are doubtful; chronostat doctor says what disturbs"
    )


def scores_table(ranking: Ranking) -> Table:
    """What each block is worth: of ``greedy`` in the round that took it out, of the others in their last round."""
    table = Table(
        title=f"{ranking.model}: loss of quality in points for each ms of {ranking.metric} ({ranking.source}) saved, "
        f"[95 % intervals]; {ranking.plan.method}",
        title_justify="left",
    )
    for head in ("place", "block", "loss of quality (points)", "saved", "loss per ms saved (points)", "samples"):
        table.add_column(head, justify="right")
    for place, block in enumerate(ranking.order):
        rounds = reversed(ranking.rounds[: place + 1])
        score = next(score for scores in rounds for score in scores if score.block == block)
        table.add_row(str(place + 1), str(block), *_score_cells(score))
    return table


def _score_cells(score: BlockScore) -> Sequence[str]:
    per_ms = "undecided" if score.loss_per_ms is None else _points(score.loss_per_ms)
    return points_interval(score.loss), ms_interval(score.saved_ms), per_ms, str(score.samples)


def _points(estimate: Estimate) -> str:
    point, low, high = (f"{100 * value:+.2f}" for value in (estimate.point, estimate.low, estimate.high))
    return f"{point} [{low}, {high}]"


def kept_table(kept: Sequence[KeptBlocks]) -> Table:
    """What is left when only some blocks are kept."""
    seen = "samples that had no part in choosing them" if all(each.fresh for each in kept) else "the same samples"
    table = Table(title=f"blocks kept, measured on {seen} [95 % intervals]", title_justify="left")
    for head in ("kept", "skipped", "loss of quality (points)", "latency / full", "samples"):
        table.add_column(head, justify="right")
    for each in kept:
        ratio = f"{each.ratio.point:.3f} [{each.ratio.low:.3f}, {each.ratio.high:.3f}]"
        skipped = ", ".join(map(str, each.skipped))
        table.add_row(str(each.keep), skipped, points_interval(each.loss), ratio, str(each.samples))
    return table
