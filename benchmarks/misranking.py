"""How often two settings are put in the wrong order, and what it costs to be right: measured noise, replayed.

``python -m benchmarks.misranking record --seconds 360 --out FILE`` executes one request again and again on this
machine, whole and cut to one token (``benchmarks/series.py``). ``--model`` names a model of ``benchmarks/models.py``.

``python -m benchmarks.misranking replay FILE`` takes stretches of that series as two arms that truly differ by 0, 2, 5,
10 or 20 %, and lets each way of comparing say which is slower (``benchmarks/replays.py``): the ``judge`` protocol, one
shot each, the median or the minimum of k in blocks, plain interleaved pairs. Printed are the share of wrong orders over
the cost in executed milliseconds (1 = one whole execution of each arm; warm-up apart), coverage and width of intervals,
false verdicts between equal arms, and which demands are met. Raw values go to ``benchmarks/results``, the curves to
``docs/images``, both under the recording's name.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, commit, markdown_table, write_result
from benchmarks.curves import write_curves
from benchmarks.models import build
from benchmarks.replays import DIFFERENCES, Way, attempts, by_judge, fixed_number, in_blocks, in_pairs, summary
from benchmarks.series import LENGTHS, METRICS, Series, conditions_of, load, record, save
from chronostat.measure.judging import Rules
from chronostat.measure.reasons import kind_of
from chronostat.measure.steady import steady

LIMITS = (1, 2, 3, 4, 6, 8, 12, 20)
ACCEPTED_LIMIT = 6
FIXED_PAIRS = (5, 6, 9, 12, 24)
_STRETCH_HELP = "enlarge the logarithms' deviations from the median: what a noisier machine would show (default 1)"


def ways() -> dict[str, dict[int, Way]]:
    """Every way to compare by name, then by its limit: the cost, or the number of whole executions of each arm."""
    return {
        "judge": {limit: by_judge(Rules(cost_limit=limit), "one") for limit in LIMITS},
        "median of k in blocks": {k: in_blocks(k, _median) for k in LIMITS},
        "minimum of k in blocks": {k: in_blocks(k, min) for k in LIMITS},
        "interleaved pairs": {k: in_pairs(k, "whole") for k in LIMITS},
        "interleaved pairs, one token": {k: in_pairs(k, "one") for k in LIMITS},
    }


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def replay(series: Series, metric: str, *, times: int, stretch: float) -> dict[str, Any]:
    """All curves and intervals as plain data."""

    def tried(way: Way, difference: float) -> dict[str, Any]:
        return summary(attempts(way, series, metric, difference, times=times, seed=0, stretch=stretch))

    curves = {
        name: {str(d): {str(limit): tried(way, d) for limit, way in by_limit.items()} for d in DIFFERENCES}
        for name, by_limit in ways().items()
    }
    whole = by_judge(Rules(cost_limit=ACCEPTED_LIMIT), "whole")
    return {
        "curves": curves,
        "equal_arms": {str(limit): tried(ways()["judge"][limit], 0.0) for limit in (ACCEPTED_LIMIT, LIMITS[-1])},
        "judge_whole_executions": {str(d): tried(whole, d) for d in (0.0, *DIFFERENCES)},
        "fixed_number": {
            str(pairs): {str(d): tried(fixed_number(pairs, Rules().block, "one"), d) for d in (0.0, 0.1)}
            for pairs in FIXED_PAIRS
        },
    }


def demands(found: Mapping[str, Any]) -> list[tuple[str, float, str, bool]]:
    """What issue and docs ask of the protocol at a limit of 6: name, value, what is asked, whether it is met."""
    judged = {d: found["curves"]["judge"][str(d)][str(ACCEPTED_LIMIT)] for d in DIFFERENCES}
    equal, every = found["equal_arms"], [*judged.values(), *found["equal_arms"].values()]
    fixed = [row["coverage"] for by_difference in found["fixed_number"].values() for row in by_difference.values()]
    false = max(row["verdicts"]["faster"] + row["verdicts"]["slower"] for row in equal.values())
    decided = judged[0.20]["verdicts"]
    shares = [
        ("wrong order of a true 5 %", judged[0.05]["wrong"], "at most", 0.08),
        ("wrong order of a true 10 %", judged[0.10]["wrong"], "at most", 0.02),
        ("true 20 % decided", decided["faster"] + decided["slower"], "at least", 0.90),
        ("false verdicts between equal arms", false, "at most", 0.05),
        ("lowest coverage, fixed number", min(fixed), "at least", 0.92),
        ("highest coverage, fixed number", max(fixed), "at most", 0.98),
        ("lowest coverage, optional stopping", min(row["coverage"] for row in every), "at least", 0.92),
    ]
    rows = [
        (name, value, f"{how} {100 * bound:g} %", value <= bound if how == "at most" else value >= bound)
        for name, value, how, bound in shares
    ]
    cost = max(row["cost"] for row in judged.values())
    return [("mean cost", cost, f"at most {ACCEPTED_LIMIT}", cost <= ACCEPTED_LIMIT), *rows]


def disturbances(series: Series, metric: str) -> str:
    """How many executions were marked, by kind, and their median latency beside that of the others."""
    rows = [["disturbed by", "executions", f"median {metric}"]]
    by_kind: dict[str, list[float]] = {}
    for row in series.rows:
        by_kind.setdefault(kind_of(row.disturbed or "nothing"), []).append(getattr(row, metric))
    for kind, values in sorted(by_kind.items(), key=lambda pair: -len(pair[1])):
        rows.append([kind, f"{len(values)} of {len(series.rows)}", f"{np.median(values):.1f} ms"])
    return markdown_table(rows)


def show(found: Mapping[str, Any]) -> str:
    """Tables for docs/comparing.md."""
    head = ["way", "cost", *(f"{100 * d:g} % wrong" for d in DIFFERENCES)]
    rows: list[list[str]] = [head]
    for name, by_difference in found["curves"].items():
        limits = [str(ACCEPTED_LIMIT)] if name == "judge" else ["1", str(ACCEPTED_LIMIT)]
        for limit in limits:
            wrong = [f"{100 * by_difference[str(d)][limit]['wrong']:.1f} %" for d in DIFFERENCES]
            cost = by_difference[str(DIFFERENCES[0])][limit]["cost"]
            rows.append([f"{name}, k = {limit}" if name != "judge" else f"judge, limit {limit}", f"{cost:.1f}", *wrong])
    intervals = [["interval", "true difference", "coverage", "median width"]]
    for pairs, by_difference in found["fixed_number"].items():
        for d, row in by_difference.items():
            intervals.append([f"fixed, {pairs} pairs", *_interval(float(d), row)])
    for limit, row in found["equal_arms"].items():
        intervals.append([f"judge, limit {limit}", *_interval(0.0, row)])
    for d in DIFFERENCES:
        row = found["curves"]["judge"][str(d)][str(ACCEPTED_LIMIT)]
        intervals.append([f"judge, limit {ACCEPTED_LIMIT}", *_interval(d, row)])
    asked = [["demand", "found", "asked", "met"]]
    for name, value, ask, met in demands(found):
        text = f"{value:.2f}" if name == "mean cost" else f"{100 * value:.1f} %"
        asked.append([name, text, ask, "yes" if met else "no"])
    return "\n\n".join(markdown_table(table) for table in (rows, intervals, asked))


def _interval(difference: float, row: Mapping[str, Any]) -> list[str]:
    return [f"{100 * difference:g} %", f"{100 * row['coverage']:.1f} %", f"{100 * row['width']:.1f} %"]


def draw(series: Series, found: Mapping[str, Any], metric: str, times: int, path: Path) -> Path:
    """The curves as a picture."""
    panels = {
        f"true difference {100 * d:g} %": {
            name: [(row["cost"], row["wrong"]) for row in by_difference[str(d)].values()]
            for name, by_difference in found["curves"].items()
        }
        for d in DIFFERENCES
    }
    device = series.conditions["device"]
    where = series.conditions["cpu"] if device == "cpu" else device
    return write_curves(
        path,
        title="Wrong order of two settings over the cost of comparing them",
        subtitle=f"{series.model}, {metric}, {where}; {len(series.rows)} executions in {series.seconds:.0f} s, "
        f"{times} comparisons a point",
        x_title="cost in executed milliseconds; 1 = one whole execution of each arm",
        y_title="wrong order",
        panels=panels,
    )


def main() -> None:
    """Record, or replay."""
    options = _options()
    if options.verb == "record":
        torch.set_num_threads(options.threads)
        subject = build(options.model, options.device, getattr(torch, options.dtype))
        with steady():
            series = record(subject, tiles=options.tiles, tokens=options.tokens, seconds=options.seconds, seed=0)
        save(series, options.out)
        print(f"{options.out}: {len(series.rows)} executions in {series.seconds:.0f} s, {series.unseen} without stages")
        return
    recorded = load(options.file)
    print(disturbances(recorded, options.metric), end="\n\n")
    series = recorded.disregarding(options.disregard)
    found = replay(series, options.metric, times=options.times, stretch=options.stretch)
    name = options.file.name.partition(".")[0] + ("" if options.stretch == 1 else f"_stretched_{options.stretch:g}")
    raw = {
        "recording": {
            "file": options.file.name,
            "commit": series.commit,
            "model": series.model,
            "tokens": series.tokens,
            "seconds": series.seconds,
            "executions": len(series.rows),
            "unseen": series.unseen,
            "disturbed": sum(row.disturbed is not None for row in series.rows),
            "disregarded": options.disregard,
            "mean_cost_ms": {length: series.mean_cost_ms(length) for length in LENGTHS},
        },
        "replayed_by": commit(),
        "metric": options.metric,
        "times": options.times,
        "stretch": options.stretch,
        "demands": demands(found),
        **found,
    }
    print(show(found))
    print(write_result(f"misranking_{name}", conditions_of(series), raw))
    print(draw(series, found, options.metric, options.times, ROOT / "docs" / "images" / f"misranking_{name}.svg"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record", help="execute one request again and again")
    recording.add_argument("--seconds", type=float, default=360.0, help="how long (default 360)")
    recording.add_argument("--out", type=Path, required=True, help="NAME.json.gz")
    recording.add_argument("--model", default="bundled", help="of benchmarks/models.py (default bundled)")
    recording.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where it runs (default cpu)")
    recording.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="default float32")
    recording.add_argument("--tiles", type=int, default=4, help="image tiles of the request (default 4)")
    recording.add_argument(
        "--tokens", type=int, default=2, help="of a whole answer (default 2, as the bundled model's)"
    )
    recording.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    replaying = verbs.add_parser("replay", help="compare arms that differ by a known share")
    replaying.add_argument("file", type=Path, help="a recording")
    replaying.add_argument("--times", type=int, default=500, help="comparisons for each point (default 500)")
    replaying.add_argument(
        "--disregard",
        metavar="KIND",
        action="append",
        default=[],
        help="a kind of disturbance that is none; repeatable",
    )
    replaying.add_argument("--metric", choices=METRICS, default="prefill_ms", help="default prefill_ms")
    replaying.add_argument("--stretch", type=float, default=1.0, help=_STRETCH_HELP)
    return parser.parse_args()


if __name__ == "__main__":
    main()
