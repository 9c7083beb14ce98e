"""Are the numbers right? The answer as tables, for people and for docs/gpu-truth.md."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.kit.cells import Cell, without_earlier
from benchmarks.kit.estimates import markdown_table, row_ratio
from benchmarks.kit.pairs import ratio_to_bare

STAGE_NAMES = ("vision", "llm_prefill", "prefill", "decode")


def tables(cells: Mapping[str, Cell]) -> str:
    """All tables, one after the other."""
    found = [
        ("Measured against bare calls", _ratios(cells)),
        ("Where the rest goes, medians in ms", _parts(cells)),
        ("Stages against the kernels of the same profiled call, ms", _timelines(cells)),
        ("Marks that wait for the device, as ratios to ours", _waiting(cells)),
        ("A kernel planted in the last block, ms", _planted(cells)),
        ("Failed", [["cell", "why"], *([key, cell["failed"]] for key, cell in cells.items() if "failed" in cell)]),
    ]
    return "\n\n".join(f"{title}\n\n{markdown_table(rows)}" for title, rows in found if len(rows) > 1)


def _ratios(cells: Mapping[str, Cell]) -> list[list[str]]:
    header = ["cell", "image tokens", "pairs", "measured / bare", "A/A", "whole call / bare", "total", "prefill"]
    table = [[*header, "decode per token", "stages / total", "doubtful"]]
    pooled: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
    for key, cell in cells.items():
        rows = cell.get("rows", [])
        if not rows:
            continue
        for name in (without_earlier(key), _where(key)):
            pooled.setdefault(name, []).append(rows)
        timings = [row["timing"] for row in rows]
        seen = [timing for timing in timings if "source" not in timing]
        table.append(
            [
                key,
                str(cell["image_tokens"]),
                *_paired(rows),
                f"{median(timing['total_ms'] for timing in timings):.1f} ms",
                _median(seen, lambda timing: timing["prefill_ms"]),
                _median(seen, lambda timing: timing["decode_ms"] / timing["decode_steps"]),
                _median(seen, lambda timing: (timing["prefill_ms"] + timing["decode_ms"]) / timing["total_ms"], "", 3),
                str(sum("disturbed" in timing or "source" in timing for timing in timings)),
            ]
        )
    for name, several in sorted(pooled.items(), key=lambda each: ":" not in each[0]):
        if len(several) > 1:
            paired = _paired([row for rows in several for row in rows])
            table.append([f"all {name}", "", *paired, *[""] * (len(table[0]) - len(paired) - 2)])
    return table


def _paired(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Number of pairs, and their ratios: each is of one model on one machine, so those of several can be pooled."""
    return [
        str(len(rows)),
        ratio_to_bare(rows, "timing.total_ms", digits=4),
        ratio_to_bare(rows, "again_ms"),
        ratio_to_bare(rows, "whole_ms", digits=4),
    ]


def _where(key: str) -> str:
    """Mode and GPU of a cell by its name, such as ``compiled H200``; ``CPU`` without a GPU."""
    return " ".join(without_earlier(key).split()[1:]) or "CPU"


def _median(
    rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float], unit: str = " ms", digits: int = 2
) -> str:
    return f"{median(map(value, rows)):.{digits}f}{unit}" if rows else "not seen"


def _plain(rows: list[dict[str, Any]], name: str) -> str:
    return _median(rows, lambda row: row[f"{name}_ms"], "")


def _parts(cells: Mapping[str, Cell]) -> list[list[str]]:
    names = ("set_up", "between", "first_token", "after", "prefill", "decode", "total")
    return [
        ["cell", *names],
        *(
            [key, *(f"{median(row[f'{name}_ms'] for row in cell['parts']):.2f}" for name in names)]
            for key, cell in cells.items()
            if "parts" in cell
        ),
    ]


def _timelines(cells: Mapping[str, Cell]) -> list[list[str]]:
    header = ["cell", "stage", "ours", "kernels", "difference", "agrees", "busy", "idle", "first to last kernel"]
    table = [[*header, "kernels, launches, lost", "without profiler"]]
    for key, cell in cells.items():
        if "timeline" not in cell:
            continue
        plain = [row for row in cell["timeline"]["unprofiled"] if "source" not in row]
        for call in cell["timeline"]["profiled"]:
            table += [
                [key, name, *_stage_cells(call, name, _plain(plain, name))]
                for name in STAGE_NAMES
                if name in call["stages"]
            ]
    return table


def _stage_cells(call: Mapping[str, Any], name: str, plain: str) -> list[str]:
    stage = call["stages"][name]
    difference = stage["ours_ms"] - stage["reference_ms"]
    return [
        f"{stage['ours_ms']:.2f}",
        f"{stage['reference_ms']:.2f}",
        f"{difference:+.3f} ({100 * difference / stage['reference_ms']:+.2f} %)",
        "yes" if stage["agrees"] else "NO",
        f"{stage['busy_ms']:.2f}",
        f"{stage['idle_ms']:.2f}",
        f"{stage['span_ms']:.2f}",
        f"{stage['kernels']}, {call['launches']}, {call['lost']}",
        plain,
    ]


def _waiting(cells: Mapping[str, Cell]) -> list[list[str]]:
    names = ("total", "vision", "llm_prefill", "prefill", "decode", "other")
    table = [["cell", *names]]
    for key, cell in cells.items():
        pairs = [row for row in cell.get("waiting", []) if all("source" not in row[arm] for arm in row)]
        if pairs:
            table.append([key, *(row_ratio(pairs, f"waiting.{name}_ms", f"plain.{name}_ms") for name in names)])
    return table


def _planted(cells: Mapping[str, Cell]) -> list[list[str]]:
    table = [["cell", "marks on the", "stage", "ours", "kernels", "agrees", "source"]]
    for key, cell in cells.items():
        for name, call in cell.get("wrong_stream", {}).items():
            if not call["stages"]:
                table.append([key, f"{name} stream", "", "", "", "", f"{call['source']}: {call['unseen']}"])
            for stage in ("llm_prefill", "prefill"):
                if stage in call["stages"]:
                    row = call["stages"][stage]
                    numbers = [f"{row['ours_ms']:.2f}", f"{row['reference_ms']:.2f}"]
                    verdict = "yes" if row["agrees"] else "NO: caught"
                    table.append([key, f"{name} stream", stage, *numbers, verdict, call["source"]])
    return table
