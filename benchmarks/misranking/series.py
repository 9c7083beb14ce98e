"""How noisy is the machine? Long A/A series: one request executed again and again, with the times when they ran.

The request is executed whole and cut to one token. Every execution of a series costs the same in truth, so whatever
differs is noise of the machine. Multiplying some of them by 1.05 makes arms that differ by 5 % and nothing else, with
the machine's own drift, steps and spikes.
"""

import functools
import gzip
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import GenerationConfig

from benchmarks.kit.models import BuiltModel
from benchmarks.kit.results import commit
from chronostat.compare.reasons import kind_of
from chronostat.execution.conditions import read_conditions
from chronostat.measure.clock import clock_for
from chronostat.measure.generate import measure_generate
from chronostat.records import Conditions

Length = Literal["whole", "one"]
LENGTHS: tuple[Length, ...] = ("whole", "one")
METRICS = ("prefill_ms", "total_ms")
_WARMUP = 3  # of each length
_SAY_EVERY_S = 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One execution.

    Attributes:
        at_ms: when it began, since the series did.
        cost_ms: what it took, with everything around ``generate()``.
        disturbed: why it would be left out; None: nothing was seen.
    """

    at_ms: float
    length: Length
    cost_ms: float
    prefill_ms: float
    total_ms: float
    disturbed: str | None


@dataclass(frozen=True, kw_only=True)
class Series:
    """A recording with the conditions it was made under.

    Attributes:
        tokens: of a whole answer.
        unseen: executions whose stages were not trusted; they are not among the rows.
    """

    model: str
    tokens: int
    unseen: int
    conditions: dict[str, Any]
    commit: str
    rows: Sequence[Row]

    @functools.cached_property
    def _by_length(self) -> dict[Length, list[Row]]:
        return {length: [row for row in self.rows if row.length == length] for length in LENGTHS}

    def disregarding(self, kinds: Collection[str]) -> "Series":
        """The same series where disturbances of these kinds are none, as by a rule that does not know them."""
        rows = [replace(row, disturbed=None) if kind_of(row.disturbed or "") in kinds else row for row in self.rows]
        return replace(self, rows=rows)

    def of(self, length: Length) -> list[Row]:
        """The executions of one length, in the order they ran."""
        return self._by_length[length]

    @functools.cached_property
    def _mean_cost_ms(self) -> dict[Length, float]:
        return {length: float(np.mean([row.cost_ms for row in self.of(length)])) for length in LENGTHS}

    def mean_cost_ms(self, length: Length) -> float:
        """What an execution of this length cost on average."""
        return self._mean_cost_ms[length]

    @functools.cached_property
    def _median_ms(self) -> dict[tuple[Length, str], float]:
        return {
            (length, metric): float(np.median([getattr(row, metric) for row in self.of(length)]))
            for length in LENGTHS
            for metric in METRICS
        }

    def median_ms(self, length: Length, metric: str) -> float:
        """Median latency of the executions of this length."""
        return self._median_ms[length, metric]

    @property
    def seconds(self) -> float:
        """How long the recording is."""
        return (self.rows[-1].at_ms + self.rows[-1].cost_ms) / 1e3


def record(
    built: BuiltModel, *, tiles: int, tokens: int, seconds: float, seed: int = 0, say: Callable[[str], None] = print
) -> Series:
    """Execute one request for ``seconds``: one whole and two of one token, in random order, again and again."""
    model, batch, rng = built.model, built.batch(tiles), np.random.default_rng(seed)
    clock, rows, unseen = clock_for(model.device), list[Row](), 0

    def run(length: Length) -> Row | None:
        nonlocal unseen
        new_tokens = tokens if length == "whole" else 1
        config = GenerationConfig(min_new_tokens=new_tokens, max_new_tokens=new_tokens)
        start_ns = clock.host_ns()
        measured = measure_generate(model, batch, max_new_tokens=new_tokens, generation_config=config)
        timing = measured.timing
        if timing.prefill_ms is None:
            unseen += 1
            return None
        return Row(
            at_ms=(start_ns - begin_ns) / 1e6,
            length=length,
            cost_ms=clock.host_ms_since(start_ns),
            prefill_ms=timing.prefill_ms,
            total_ms=timing.total_ms,
            disturbed=measured.disturbed,
        )

    begin_ns = clock.host_ns()
    for _ in range(_WARMUP):
        run("whole")
        run("one")
    begin_ns, unseen, said = clock.host_ns(), 0, 0
    while clock.host_ms_since(begin_ns) < seconds * 1e3:
        ran = [run(length) for length in rng.permutation(["whole", "one", "one"]).tolist()]
        rows.extend(row for row in ran if row is not None)
        if clock.host_ms_since(begin_ns) > (said + 1) * _SAY_EVERY_S * 1e3:
            said += 1
            say(f"{clock.host_ms_since(begin_ns) / 1e3:.0f} of {seconds:g} s, {len(rows)} executions")
    return Series(
        model=built.name,
        tokens=tokens,
        unseen=unseen,
        conditions=asdict(read_conditions(model)),
        commit=commit(),
        rows=rows,
    )


def save(series: Series, path: Path) -> None:
    """Write a recording: gzip-compressed JSON, columns rounded to a microsecond."""
    columns = {
        "at_ms": [round(row.at_ms, 1) for row in series.rows],
        "one_token": [int(row.length == "one") for row in series.rows],
        **{name: [round(getattr(row, name), 3) for row in series.rows] for name in ("cost_ms", *METRICS)},
        "disturbed": {str(i): row.disturbed for i, row in enumerate(series.rows) if row.disturbed is not None},
    }
    head = {key: getattr(series, key) for key in ("model", "tokens", "unseen", "conditions", "commit")}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**head, "columns": columns}, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def load(path: Path) -> Series:
    """Read a recording."""
    content = json.loads(gzip.decompress(path.read_bytes()))
    columns = content.pop("columns")
    disturbed = columns.pop("disturbed")
    lengths: list[Length] = ["one" if one else "whole" for one in columns.pop("one_token")]
    numbers = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = [
        Row(length=length, disturbed=disturbed.get(str(i)), **row)
        for i, (length, row) in enumerate(zip(lengths, numbers, strict=True))
    ]
    return Series(rows=rows, **content)


def conditions_of(series: Series) -> Conditions:
    """As the record that results carry."""
    return Conditions.from_json(series.conditions)
