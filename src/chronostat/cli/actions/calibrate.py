"""What chronostat calibrate does: a controller renewed where it is now, and what has moved in words."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from chronostat.cli.console import Bars
from chronostat.cli.output import write_json
from chronostat.config import overridden
from chronostat.control.calibration import alone
from chronostat.control.controller_files import read_controller
from chronostat.control.recalibration import Recalibration
from chronostat.records import Estimate, Setting
from chronostat.report.text import ms_interval
from chronostat.studies.renewing import passing, renew


def calibrate(
    controller: Path,
    to: Path,
    data: Path | None,
    executions: int,
    seed: int,
    overrides: Sequence[str],
    json_file: Path | None,
    out: Console,
) -> None:
    """Execute, renew, write, and say what has moved."""
    config = overridden(read_controller(controller)[0].controller.config, overrides)
    samples = passing(config, data)
    renewed = renew(controller, config, samples, most=executions, seed=seed, progress=Bars(out))
    renewed.controller.save(to)
    out.print(moved_table(renewed))
    for line in said(renewed):
        out.print(line)
    out.print(f"controller: {to}")
    if json_file is not None:
        write_json(json_file, _to_json(renewed))
        out.print(f"written: {json_file}")


def moved_table(renewed: Recalibration) -> Table:
    """What each value of each knob alone takes as a fraction of full, before and now."""
    table = Table(
        title="mean latency / full, of each knob's values alone", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("value", overflow="fold")
    for head in ("before", "now [95 % interval]", ""):
        table.add_column(head, justify="right")
    space = renewed.controller.space
    for setting in alone(space)[1:]:
        each = renewed.settings[space.index(setting)]
        turned = Setting({knob: value for knob, value in setting.pairs if value != space.full[knob]})
        table.add_row(str(turned), f"{each.before:.3f}", _fraction(each.now), "moved" if each.moved else "")
    return table


def said(renewed: Recalibration) -> Iterator[str]:
    """What has moved, and how sure that is."""
    full, before_ms, others = renewed.full_ms, renewed.full_before_ms, renewed.settings[1:]
    metric = renewed.controller.metric
    if full.low <= before_ms <= full.high:
        yield f"full: {metric} {ms_interval(full)}, not seen to differ from {before_ms:.1f} ms before"
    else:
        yield f"full: {metric} {ms_interval(full)}, {full.point / before_ms:.2f} times the {before_ms:.1f} ms before"
    moved = sorted((each for each in others if each.moved), key=lambda each: -abs(each.now.point / each.before - 1))
    if not moved:
        yield "no setting was seen to move as a fraction of full"
    else:
        most = moved[0]
        yield (
            f"{len(moved)} of {len(others)} settings moved as a fraction of full, {most.setting} the most: from "
            f"{most.before:.3f} to {_fraction(most.now)}"
        )
    known = [each.now.high / each.now.point - 1 for each in others]
    yield f"learned from {renewed.executions} executions" + (
        f"; half of the settings are known to {median(known):.0%} or better" if known else ""
    )
    if renewed.disturbed:
        yield f"{renewed.disturbed} executions are left out: something else on the machine took part"
    if renewed.failed:
        yield f"{renewed.failed} executions failed"
    for setting, reason in renewed.taken_out.items():
        yield f"setting {setting} kept failing and is never chosen: {reason}"


def _fraction(estimate: Estimate) -> str:
    return f"{estimate.point:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _to_json(renewed: Recalibration) -> dict[str, Any]:
    controller = renewed.controller
    return {
        "metric": controller.metric,
        "conditions": asdict(controller.metadata.conditions),
        "full_before_ms": renewed.full_before_ms,
        "full_ms": asdict(renewed.full_ms),
        "controller_ms": controller.policy.forecast.controller * controller.full_ms,
        "executions": renewed.executions,
        "disturbed": renewed.disturbed,
        "failed": renewed.failed,
        "taken_out": {str(setting): reason for setting, reason in renewed.taken_out.items()},
        "settings": [
            {
                "setting": str(each.setting),
                "before": each.before,
                "now": asdict(each.now),
                "moved": each.moved,
                "executions": each.executions,
            }
            for each in renewed.settings
        ],
    }
