"""knobs and rank-blocks: what a model's knobs do, and which of its decoder blocks are worth least."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from chronostat.config import Config
from chronostat.console import Bars
from chronostat.effects import Effect, Effects, measure_effects
from chronostat.errors import ConfigError, StoreError
from chronostat.importance import RANKING, BlockScore, KeptBlocks, Plan, Ranking, load_ranking
from chronostat.knobs import KNOBS, find_knob, find_space
from chronostat.material import load_data, load_model
from chronostat.measure.work import Work
from chronostat.models.anatomy import anatomy_of
from chronostat.models.load import Vlm
from chronostat.ranking import check_plan, rank, ranking_material, refused_blocks
from chronostat.records import Comparison, Conditions, Estimate, KnobValue, Setting, value_text
from chronostat.report.text import ms_interval, points_interval
from chronostat.session import Session, begin_with, reopen_with
from chronostat.store import RunStore
from chronostat.verbs.loop import stored_config
from chronostat.verbs.measuring import by_engine, decoding_notes, one_request
from chronostat.verbs.output import write_json


def knobs(
    config: Config,
    images: Sequence[Path],
    prompt: str | None,
    *,
    repeats: int,
    seconds: float | None,
    ranking: Path | None,
    json_file: Path | None,
    out: Console,
) -> None:
    """The joint space of a model, each knob's mechanism, and what each of its values does to one request."""
    if ranking is not None and (config.knobs.block_skip or config.knobs.block_order):
        raise ConfigError(
            "--ranking, knobs.block_skip and knobs.block_order each say what is left out; give one of them"
        )
    vlm = load_model(config)
    request = one_request(vlm, images, prompt, own_model=config.model.path is not None)
    for note in decoding_notes([vlm]):
        out.print(note)
    levels = config.knobs.model_dump()
    if ranking is not None:
        levels["block_skip"] = _by_importance(load_ranking(ranking, vlm.fingerprint), ranking)
    space, absent = find_space(vlm.model, vlm.processor, levels)
    with out.status("counting") as status, by_engine(config, vlm, request, out):
        effects = measure_effects(
            vlm,
            request,
            space,
            absent,
            new_tokens=config.measure.max_new_tokens,
            repeats=repeats,
            seconds=seconds,
            seed=config.seed,
            advance=lambda share, note: status.update(f"measuring: {100 * share:.0f} %, {note}"),
        )
    nearest = nearest_values(vlm, levels)
    for line in _space_lines(effects, nearest):
        out.print(line)
    for table in effects_tables(effects):
        out.print(table)
    for effect in effects.effects:
        for note in _notes(effect):
            out.print(f"{_name(effect)}: {note}")
    out.print(f"{effects.executions} executions; {effects.ended}")
    if json_file is not None:
        write_json(json_file, {**effects.to_json(), "nearest": nearest})
        out.print(f"written: {json_file}")


def _by_importance(ranking: Ranking, path: Path) -> list[tuple[int, ...]]:
    """The sets of blocks whose loss was measured."""
    if not ranking.kept:
        raise ConfigError(f"the ranking in {path} was made without --keep, so it holds no set of blocks to leave out")
    return [kept.skipped for kept in ranking.kept]


def nearest_values(vlm: Vlm, levels: Mapping[str, Any]) -> dict[str, dict[str, KnobValue]]:
    """By knob the values that are asked for and cannot be met exactly, as text, with what they are taken to."""
    nearest: dict[str, dict[str, KnobValue]] = {}
    for name in KNOBS:
        for value in levels.get(name) or ():
            reached = find_knob(name, vlm.model, vlm.processor).reached(value)
            if reached != value:
                nearest.setdefault(name, {})[value_text(value)] = reached
    return nearest


def _space_lines(effects: Effects, nearest: Mapping[str, Mapping[str, KnobValue]]) -> Iterator[str]:
    product = " x ".join(str(len(values)) for values in effects.space.levels.values())
    yield f"{effects.model}: {len(effects.space)} settings ({product})"
    for name, values in effects.space.levels.items():
        shown = "; ".join(value_text(value) for value in values)
        yield f"{name}: {effects.mechanisms[name]}; values {shown}"
        for asked, reached in nearest.get(name, {}).items():
            yield f"{name}: {asked} is taken to {value_text(reached)}, the nearest that can be asked for"
    for reason in effects.absent.values():
        yield f"absent: {reason}"
    if effects.space.pruned:
        setting, reason = next(iter(effects.space.pruned.items()))
        yield f"pruned: {len(effects.space.pruned)} combinations, among them {setting} ({reason})"


def effects_tables(effects: Effects) -> tuple[Table, Table]:
    """One line for each value: the counted work; and the ratios of latency to full with their verdicts."""
    work = _by_setting("one value at a time; work counted in one execution")
    for head in ("image tokens", "experts", "blocks", "forwards"):
        work.add_column(head, justify="right")
    work.add_row("full", *_work_cells(effects.full))
    latency = _by_setting(_latency_title(effects.conditions, effects.source))
    metrics = list(dict.fromkeys(metric for effect in effects.effects for metric in effect.comparisons))
    for metric in metrics:
        latency.add_column(metric.replace("_ms", "").replace("_", " "), min_width=len("0.00 [0.00, 0.00]"))
    for effect in effects.effects:
        work.add_row(_name(effect), *_work_cells(effect.work))
        latency.add_row(_name(effect), *(_ratio(effect.comparisons.get(metric)) for metric in metrics))
    return work, latency


def _by_setting(title: str) -> Table:
    """Three ratios with their intervals fit a terminal of 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("setting", min_width=len("block_skip=2,3,4,5"), overflow="fold")
    return table


def _latency_title(conditions: Conditions, source: str) -> str:
    device = conditions.cpu if conditions.device == "cpu" else conditions.device
    return (
        f"latency ({source}) / full [95 % interval] and verdict\n{device}, {conditions.threads} thread(s), "
        f"{conditions.dtype}, torch {conditions.torch}, transformers {conditions.transformers}"
    )


def _notes(effect: Effect) -> Iterator[str]:
    if effect.flag:
        yield effect.flag
    without_pairs = [comparison for comparison in effect.comparisons.values() if not comparison.pairs]
    yield from dict.fromkeys(flag for comparison in without_pairs for flag in comparison.flags)


def _name(effect: Effect) -> str:
    return str(Setting({effect.knob: effect.value}))


def _work_cells(work: Work) -> tuple[str, ...]:
    counts = (work.image_tokens, work.experts_per_token, work.blocks_run, work.forwards)
    return tuple("-" if count is None else f"{count:g}" for count in counts)


def _ratio(comparison: Comparison | None) -> str:
    if comparison is None or not comparison.pairs:
        return "-"
    ratio = comparison.ratio
    interval = f" [{ratio.low:.2f}, {ratio.high:.2f}]" if math.isfinite(ratio.high) else " [too few pairs]"
    return f"{ratio.point:.2f}{interval} {comparison.verdict}"


def rank_blocks(config: Config, plan: Plan, folder: Path, command: str, out: Console) -> None:
    """A new ranking of the decoder blocks."""
    dataset = load_data(config)
    vlm = load_model(config)
    plan = _with_sets(plan, vlm)
    material = ranking_material(config, vlm, dataset)
    opened = begin_with(material, run_dir=folder, command=command, progress=Bars(out), ranking=asdict(plan))
    with opened as session:
        _rank(session, plan, folder, out)


def resume_ranking(folder: Path, out: Console) -> None:
    """The rest of a ranking that ended early."""
    store = RunStore.open(folder)
    plan = _stored_plan(store)
    if store.holds(RANKING):
        raise StoreError(f"{folder} has finished: its ranking is in {folder / RANKING}")
    config = stored_config(store)
    material = ranking_material(config, load_model(config), load_data(config))
    with reopen_with(material, store, progress=Bars(out)) as session:
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
        return TypeAdapter(Plan).validate_python(store.facts["ranking"])
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
