"""What chronostat doctor does: whether this machine can be trusted with a measurement."""

from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from chronostat.cli.actions.measure import decoding_notes
from chronostat.cli.interrupt import first_interrupt_ends_measuring
from chronostat.cli.output import write_json
from chronostat.config import Config
from chronostat.data.demo import DemoTask
from chronostat.execution.execute import request_for
from chronostat.report.text import milliseconds
from chronostat.runs.workload import load_model
from chronostat.studies.doctor import DIFFERENCES, Examination, Floor, examine

_MARKS = {"ok": "", "note": "note", "problem": "problem", "unknown": "not known"}


def doctor(config: Config, seconds: float, json_file: Path | None, out: Console) -> int:
    """Examine the machine, say what was found, and give the exit status that says it to scripts.

    Raises:
        KeyboardInterrupt: measuring was interrupted; what there is has been shown and written.
    """
    vlm = load_model(config)
    request = request_for(DemoTask().split("validation")[0], vlm.processor, None)
    for note in decoding_notes([vlm]):
        out.print(note)
    with first_interrupt_ends_measuring() as stopped:
        found = examine(vlm, request, seconds=seconds, stopped=stopped)
        interrupted = stopped()
    out.print(findings_table(found))
    if found.floors:
        out.print(floors_table(found))
    for line in verdict_lines(found):
        out.print(line)
    if json_file is not None:
        write_json(json_file, found.to_json())
        out.print(f"what was found: {json_file}")
    if interrupted:
        raise KeyboardInterrupt
    return found.exit_status


def findings_table(found: Examination) -> Table:
    """What the machine says of itself."""
    conditions = found.conditions
    place = conditions.cpu if conditions.device == "cpu" else conditions.device
    table = Table(title=f"{conditions.machine}, {place}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for head in ("", "found", ""):
        table.add_column(head)
    for each in found.findings:
        table.add_row(each.topic, each.fact, _MARKS[each.level])
    return table


def floors_table(found: Examination) -> Table:
    """The measured noise, and what it takes to see through it."""
    table = Table(
        title=f"{found.model}: noise of equal arms (A/A), {found.pairs} interleaved pairs [95 % interval]",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for head in ("median", "A / B", "spread", *(f"pairs for {100 * each:g} %" for each in DIFFERENCES)):
        table.add_column(head, justify="right")
    for floor in found.floors:
        table.add_row(*_cells(floor))
    return table


def _cells(floor: Floor) -> Iterator[str]:
    ratio = floor.ratio
    yield floor.metric
    yield milliseconds(floor.median_ms.point)
    yield f"{ratio.point:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    yield f"{100 * floor.spread:.1f} %"
    for difference in DIFFERENCES:
        yield str(floor.pairs.get(difference, "-"))


def verdict_lines(found: Examination) -> Iterator[str]:
    """The verdict in words, why, and what to change."""
    disturbed = sum(found.disturbed.values())
    yield f"disturbed: {disturbed} of {found.repeats} repeats ({100 * found.disturbed_share:.0f} %)"
    for reason, count in sorted(found.disturbed.items(), key=lambda pair: -pair[1]):
        yield f"  {count}: {reason}"
    yield f"verdict: {found.verdict}"
    for doubt in found.doubts:
        yield f"  because of {doubt}"
    for each in found.findings:
        if each.advice:
            yield f"  {each.topic}: {each.advice}"
