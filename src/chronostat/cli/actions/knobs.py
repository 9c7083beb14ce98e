"""What chronostat knobs does: what each value of each knob of a model does."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from chronostat.cli.actions.measure import by_engine, decoding_notes
from chronostat.cli.actions.requests import one_request
from chronostat.cli.output import write_json
from chronostat.config import Config
from chronostat.errors import ConfigError
from chronostat.knobs.registry import KNOBS, find_knob, find_space
from chronostat.measure.work import Work
from chronostat.models.load import Vlm
from chronostat.records import Comparison, Conditions, KnobValue, Setting, value_text
from chronostat.runs.workload import load_model
from chronostat.studies.block_ranking.importance import Ranking, load_ranking
from chronostat.studies.knob_effects import Effect, Effects, measure_effects


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
        levels["block_skip"] = _by_importance(load_ranking(ranking, vlm.model), ranking)
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
