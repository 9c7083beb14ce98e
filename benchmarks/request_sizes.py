"""How much of a request's latency does its size tell beforehand? Requests of very different size, executed and stored.

::

    python -m benchmarks.request_sizes
    python -m benchmarks.request_sizes --show

Each request is executed under four settings drawn at random and, every ten seconds, under ``full`` as well; every tenth
trial executes one and the same reference request under ``full``, so that the machine's drift can be told from sizes.
Beside the latencies stands what ``RequestSizes`` told before. Forecasts are then compared without a model.

The table compares two forecasts for requests that they have not seen, in five folds by request: the median of the
setting, and a line per setting through image and text tokens and the square of both together. The error is the median
of |forecast / measured - 1|; below it is that of both scaled by the last measurement of the reference.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, ProcessorMixin

from benchmarks.kit.estimates import markdown_table
from benchmarks.kit.options import plain_parser
from benchmarks.kit.qwen_like import QwenLikeTask, qwen_like
from benchmarks.kit.results import RESULTS, read_compressed, write_compressed
from chronostat.data.demo import DemoSizesTask
from chronostat.data.quality import exact
from chronostat.data.samples import Dataset
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import request_for
from chronostat.execution.sizes import RequestSizes
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.registry import find_space
from chronostat.knobs.space import ActionSpace
from chronostat.machine.stabilise import stabilised
from chronostat.measure.clock import CpuClock
from chronostat.models.load import load_vlm
from chronostat.records import Trial

SETTINGS_PER_REQUEST = 4
REFERENCE_EVERY = 10  # trials
ANCHOR_EVERY_S = 10.0
NEW_TOKENS = 8
FOLDS = 5
WARM_UPS = 3
REFERENCE = -1  # its number among the requests

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A model with requests."""

    model: PreTrainedModel
    processor: ProcessorMixin
    task: Dataset


def _bundled() -> Cell:
    vlm = load_vlm(device="cpu", dtype="float32")
    assert vlm.processor is not None, "the bundled model has one"
    return Cell(model=vlm.model, processor=vlm.processor, task=DemoSizesTask())


def _qwen_like() -> Cell:
    vlm = qwen_like()
    return Cell(model=vlm.model, processor=vlm.processor, task=QwenLikeTask())


CELLS: dict[str, Callable[[], Cell]] = {"bundled, demo_sizes": _bundled, "Qwen-like": _qwen_like}


def main() -> None:
    """Record both cells, or show what was recorded."""
    parser = plain_parser(__doc__)
    parser.add_argument("--requests", type=int, default=300, help="of each model (default 300)")
    parser.add_argument("--seconds", type=float, default=240.0, help="at most so many for each model (default 240)")
    parser.add_argument("--out", type=Path, default=RESULTS / "request_sizes.json.gz", help="the file of the result")
    parser.add_argument("--show", action="store_true", help="print the table of what was recorded; execute nothing")
    options = parser.parse_args()
    if not options.show:
        write_compressed(options.out, "request_sizes", {name: record(make(), options) for name, make in CELLS.items()})
    recorded = read_compressed(options.out)["raw"]
    print(markdown_table([HEAD, *((name, *row_of(cell)) for name, cell in recorded.items())]))


def record(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Execute requests of a model until their number or the time is reached.

    Returns:
        Plain data: ``settings`` as text; for each request its id, pictures, and image and text tokens by setting; for
        each execution its request (-1: the reference), setting, whether it is an anchor, moment and what was measured.
    """
    torch.set_num_threads(1)
    space, _ = find_space(cell.model, cell.processor, {})
    sizes = RequestSizes(cell.model, cell.processor, space)
    samples = cell.task.split("train")
    trials: list[Trial] = []
    runner = TrialRunner(
        model=cell.model,
        processor=cell.processor,
        quality=exact,
        full=space.full,
        max_new_tokens=NEW_TOKENS,
        clock=CpuClock(),
        seed=0,
        keep=trials.append,
        anchor_every_s=ANCHOR_EVERY_S,
    )
    reference = request_for(cell.task.split("validation")[0], cell.processor, exact)
    rng = np.random.default_rng(0)
    told: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    with stabilised():
        conditions = read_conditions(cell.model)
        for index in range(WARM_UPS):
            runner.run("warmup", index, reference, [space.full])
        while len(told) < options.requests and runner.elapsed_s < options.seconds:
            index = len(told)
            if index % REFERENCE_EVERY == 0:
                rows += _rows(runner.run("calibrate", index, reference, [space.full]), space, REFERENCE)
            request = request_for(samples[index], cell.processor, exact)
            tokens = sizes(request)
            told.append({"id": samples[index].id, "pictures": len(request.images), **_tokens(tokens)})
            drawn = rng.choice(len(space), size=SETTINGS_PER_REQUEST, replace=False)
            rows += _rows(
                runner.run("train", index, request, [space.settings[i] for i in drawn.tolist()]), space, index
            )
            print(f"\r{len(told)} requests, {len(rows)} executions, {runner.elapsed_s:.0f} s", end="", flush=True)
    print()
    return {
        "settings": [str(setting) for setting in space.settings],
        "reference": _tokens(sizes(reference)),
        "requests": told,
        "executions": {key: [row[key] for row in rows] for key in rows[0]},
        "conditions": asdict(conditions),
    }


def _tokens(tokens: Floats) -> dict[str, list[int]]:
    return {"image_tokens": tokens[:, 0].astype(int).tolist(), "text_tokens": tokens[:, 1].astype(int).tolist()}


def _rows(trial: Trial, space: ActionSpace, request: int) -> list[dict[str, Any]]:
    """One for each execution that was measured."""
    drawn = set(trial.draws)
    return [
        {
            "request": request,
            "setting": space.index(execution.setting),
            "anchor": position not in drawn,
            "started_s": round(trial.started_s, 3),
            "prefill_ms": execution.timing.prefill_ms,
            "total_ms": execution.timing.total_ms,
            "new_tokens": execution.timing.new_tokens,
            "image_tokens": execution.image_tokens,
            "prompt_tokens": execution.prompt_tokens,
            "quality": execution.quality,
            "disturbed": execution.disturbed,
        }
        for position, execution in enumerate(trial.executions)
        if execution.timing is not None
    ]


HEAD = (
    "model, task",
    "requests, executions",
    "image tokens of full: 5, 50, 95 %",
    "prefill_ms of full: 5, 50, 95 %",
    "right at full",
    "error of the median per setting",
    "of the line through tokens",
    "beside the reference",
)


def row_of(cell: dict[str, Any]) -> tuple[str, ...]:
    """One model's cells after its name."""
    columns = {key: np.array(values, dtype=object) for key, values in cell["executions"].items()}
    of_requests = columns["request"] != REFERENCE
    request, setting = (columns[key][of_requests].astype(int) for key in ("request", "setting"))
    prefill_ms, started_s = (columns[key][of_requests].astype(float) for key in ("prefill_ms", "started_s"))
    tokens = np.array(
        [[each["image_tokens"], each["text_tokens"]] for each in cell["requests"]], dtype=np.float64
    )  # [requests, 2, S]
    size = tokens[request, :, setting]
    at_full = setting == 0
    right = [quality for quality in columns["quality"][of_requests][at_full] if quality is not None]
    scale = _drift(columns, started_s)
    errors = [
        np.median(np.abs(_forecast(setting, size, request, prefill_ms / by, by_tokens=by_tokens) * by / prefill_ms - 1))
        for by_tokens, by in ((False, np.ones_like(scale)), (True, np.ones_like(scale)), (True, scale))
    ]
    return (
        f"{len(tokens)}, {len(request)}",
        _quantiles(tokens[:, 0, 0]),
        _quantiles(prefill_ms[at_full]),
        f"{100 * np.mean(right):.0f} %" if right else "",
        *(f"{100 * error:.1f} %" for error in errors),
    )


def _drift(columns: dict[str, NDArray[Any]], started_s: Floats) -> Floats:
    """The last measurement of the reference before each moment, relative to its median."""
    own = columns["request"] == REFERENCE
    measured_ms, at_s = (columns[key][own].astype(float) for key in ("prefill_ms", "started_s"))
    last = np.maximum(np.searchsorted(at_s, started_s, side="right") - 1, 0)
    return measured_ms[last] / np.median(measured_ms)


def _forecast(setting: NDArray[Any], size: Floats, request: NDArray[Any], ms: Floats, *, by_tokens: bool) -> Floats:
    """For each execution a forecast from those of other requests, by which relative errors are small."""
    both = size.sum(axis=1)
    features = np.column_stack([np.ones(len(both)), size, both**2])
    forecast = np.empty(len(ms))
    for fold in range(FOLDS):
        for each in np.unique(setting):
            mine = setting == each
            known, asked = mine & (request % FOLDS != fold), mine & (request % FOLDS == fold)
            if by_tokens:
                weights = np.linalg.lstsq(features[known] / ms[known, None], np.ones(known.sum()), rcond=None)[0]
                forecast[asked] = features[asked] @ weights
            else:
                forecast[asked] = np.median(ms[known])
    return forecast


def _quantiles(values: Sequence[float] | Floats) -> str:
    return ", ".join(f"{value:.0f}" for value in np.quantile(values, (0.05, 0.5, 0.95)))


if __name__ == "__main__":
    main()
