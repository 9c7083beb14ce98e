"""Does a comparison survive another program that starts and stops? With the ``judge`` protocol and without it.

``python -m benchmarks.disturbance [--seconds 120]``. The bundled model executes one request; the latencies of one of
two arms are multiplied by 1.10, so the truth is known while the noise is that of the machine. In half of the time as
many busy processes as there are cores start, run for some tenths of a second up to 1.5 s, end, and start again. Ways
to compare take turns, so that all meet the same trouble:

* judge: interleaved blocks in random order, disturbed repeats left out by the machine's own counters;
* judge without counters: the same, nothing left out;
* blocks: six executions of one arm, then of the other, with the interval that they would have in random order;
* one shot each.

Printed are, with and without the other program, comparisons that gave a number at all; of these, wrong orders and
coverage of the 95 % interval (one without bounds misses nothing, so it is said how many had bounds); verdicts, and
repeats left out. Raw values go to ``benchmarks/results/disturbance.json``.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.kit.estimates import markdown_table
from benchmarks.kit.models import BuiltModel, bundled_on_one_thread
from benchmarks.kit.options import plain_parser
from benchmarks.kit.results import write_result
from chronostat.compare.judging import Repeat, Rules, judge, ratio_of
from chronostat.compare.sequential import Block
from chronostat.execution.conditions import read_conditions
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.generate import measure_generate
from chronostat.records import Estimate, Verdict

DIFFERENCE = 0.10
METRIC = "prefill_ms"
_BLOCK_REPEATS = 6
_BUSY_S, _QUIET_S = (0.3, 1.5), (0.3, 1.5)


def busy(seconds: float) -> None:
    """Compute for some time."""
    end_ns = time.perf_counter_ns() + seconds * 1e9
    while time.perf_counter_ns() < end_ns:
        sum(range(1000))


def compete(seed: int, processes: int) -> None:
    """Start busy processes, wait for their end, rest, again and again until the parent is gone."""
    rng, parent = np.random.default_rng(seed), os.getppid()
    while os.getppid() == parent:
        running = [multiprocessing.Process(target=busy, args=(rng.uniform(*_BUSY_S),)) for _ in range(processes)]
        for process in running:
            process.start()
        for process in running:
            process.join()
        time.sleep(rng.uniform(*_QUIET_S))


@contextmanager
def competing(seed: int, processes: int) -> Generator[BaseProcess]:
    """Another program that starts and stops beside what runs inside."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=compete, args=(seed, processes))
    process.start()
    try:
        yield process
    finally:
        process.terminate()  # its children end by themselves within 1.5 s
        process.join()
        time.sleep(_BUSY_S[1])


@dataclass(frozen=True, kw_only=True)
class Arms:
    """One request as two arms, the first token only; arm 1 costs 1.10 times as much by definition."""

    built: BuiltModel
    batch: dict[str, torch.Tensor]
    clock: Clock

    def run(self, arm: int) -> Repeat:
        """Execute once."""
        start_ns = self.clock.host_ns()
        measured = measure_generate(self.built.model, self.batch, max_new_tokens=1)
        cost_ms, prefill_ms = self.clock.host_ms_since(start_ns), measured.timing.prefill_ms
        if prefill_ms is None:  # the stages are not trusted, whoever compares
            return Repeat(latency_ms={}, cost_ms=cost_ms, left_out=measured.timing.unseen)
        factor = 1 + DIFFERENCE if arm else 1.0
        return Repeat(latency_ms={METRIC: factor * prefill_ms}, cost_ms=cost_ms, left_out=measured.disturbed)

    def log(self, arm: int) -> float:
        """Log latency of the next execution whose stages were seen, disturbed or not."""
        while METRIC not in (latency_ms := self.run(arm).latency_ms):
            pass
        return math.log(latency_ms[METRIC])


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one comparison said of arm 1 / arm 0."""

    ratio: Estimate
    verdict: str | None = None
    left_out: int = 0
    executions: int = 0


def judged(arms: Arms, rng: np.random.Generator, limit: float, *, counters: bool) -> Said:
    """By the protocol."""

    def repeat(arm: int, _: int) -> Repeat:
        ran = arms.run(arm)
        return ran if counters or not ran.latency_ms else replace(ran, left_out=None)

    found = judge(repeat, 2, metric=METRIC, rules=Rules(cost_limit=limit), seed=int(rng.integers(2**31)))
    comparison = found.comparisons[METRIC][1]
    return Said(
        ratio=comparison.ratio,
        verdict=comparison.verdict,
        left_out=sum(ran.repeat.left_out is not None for ran in found.ran if not ran.warmup),
        executions=sum(not ran.warmup for ran in found.ran),
    )


def in_blocks(arms: Arms, rng: np.random.Generator, repeats: int) -> Said:
    """One arm after the other."""
    logs = {arm: [arms.log(arm) for _ in range(repeats)] for arm in rng.permutation(2).tolist()}
    ratio = ratio_of([Block(arm=logs[1], partner=logs[0])], 0.05)
    return Said(ratio=ratio, executions=2 * repeats)


def compare(arms: Arms, seconds: float, limit: float, seed: int) -> dict[str, list[Said]]:
    """All ways in turn, in random order, until the time is over."""
    rng = np.random.default_rng(seed)
    ways: dict[str, Callable[[], Said]] = {
        "judge": lambda: judged(arms, rng, limit, counters=True),
        "judge without counters": lambda: judged(arms, rng, limit, counters=False),
        "blocks": lambda: in_blocks(arms, rng, _BLOCK_REPEATS),
        "one shot each": lambda: in_blocks(arms, rng, 1),
    }
    said: dict[str, list[Said]] = {name: [] for name in ways}
    start_ns = arms.clock.host_ns()
    while arms.clock.host_ms_since(start_ns) < seconds * 1e3:
        for name in rng.permutation(list(ways)).tolist():
            said[name].append(ways[name]())
    return said


def summary(said: list[Said]) -> dict[str, Any]:
    """Shares over the comparisons with a number, of which a disturbed one may have none."""
    ratios = [each.ratio for each in said if math.isfinite(each.ratio.point)]
    row: dict[str, Any] = {
        "comparisons": len(said),
        "numbers": len(ratios),
        "wrong": float(np.mean([ratio.point <= 1 for ratio in ratios])),
        "coverage": float(np.mean([ratio.low <= 1 + DIFFERENCE <= ratio.high for ratio in ratios])),
        "bounded": sum(math.isfinite(ratio.high) for ratio in ratios),
        "left_out": sum(each.left_out for each in said) / sum(each.executions for each in said),
    }
    if said[0].verdict is not None:
        row["verdicts"] = {v: sum(e.verdict == v for e in said) for v in get_args(Verdict)}
    return row


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """For docs/comparing.md."""
    heads = ("comparisons", "with a number", "wrong order", "coverage", "bounded", "right verdict", "wrong", "left out")
    rows = [["other program", "way", *heads]]
    for condition, by_way in found.items():
        for way, row in by_way.items():
            verdicts = row.get("verdicts")
            rows.append(
                [
                    condition,
                    way,
                    str(row["comparisons"]),
                    str(row["numbers"]),
                    f"{100 * row['wrong']:.1f} %",
                    f"{100 * row['coverage']:.1f} %" if row["bounded"] else "",
                    str(row["bounded"]),
                    str(verdicts["slower"]) if verdicts else "",
                    str(verdicts["faster"] + verdicts["same"]) if verdicts else "",
                    f"{100 * row['left_out']:.0f} %" if way == "judge" else "",
                ]
            )
    return markdown_table(rows)


def main() -> None:
    """Measure, print, write."""
    parser = plain_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="with and without the other, each half (120)")
    parser.add_argument("--limit", type=float, default=12.0, help="of the judge, in one-token shots (default 12)")
    options = parser.parse_args()
    built = bundled_on_one_thread()
    arms = Arms(built=built, batch=built.batch(4), clock=clock_for(built.model.device))
    processes = len(os.sched_getaffinity(0))
    said = {"no": compare(arms, options.seconds / 2, options.limit, seed=0)}
    with competing(0, processes):
        said["starts and stops"] = compare(arms, options.seconds / 2, options.limit, seed=1)
    found = {condition: {way: summary(each) for way, each in by_way.items()} for condition, by_way in said.items()}
    print(table(found))
    raw = {
        "difference": DIFFERENCE,
        "limit": options.limit,
        "processes": processes,
        "found": found,
        "ratios": {
            condition: {way: [(e.ratio.point, e.ratio.low, e.ratio.high) for e in each] for way, each in by_way.items()}
            for condition, by_way in said.items()
        },
    }
    print(write_result("disturbance", read_conditions(built.model), raw))


if __name__ == "__main__":
    main()
