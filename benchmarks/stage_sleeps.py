"""Does time land in the stage where it was spent? Real sleeps of known length, one per stage of the bundled model.

``python -m benchmarks.stage_sleeps [--rounds N] [--sleep-ms MS]``. Each round runs every case and a run
without a sleep once, in random order. Printed is, for each case and stage, the mean of the paired differences to the
round's run without a sleep, with its 95 % bootstrap interval: the sleep must appear in its own stage (marked ``*``) and
nowhere else. Raw values go to ``benchmarks/results/stage_sleeps.json``.
"""

import functools
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from torch import nn

from benchmarks.kit.estimates import format_estimate
from benchmarks.kit.models import BuiltModel, bundled_on_one_thread
from benchmarks.kit.options import plain_parser
from benchmarks.kit.results import write_result
from chronostat.compare.statistics import PairedBootstrap
from chronostat.execution.conditions import read_conditions
from chronostat.measure.generate import measure_generate
from chronostat.models.anatomy import anatomy_of

STAGES = ("vision_ms", "projector_ms", "llm_prefill_ms", "prefill_rest_ms", "decode_ms", "other_ms")
NEW_TOKENS = 4


class Case(NamedTuple):
    """Where a sleep is put and where it must appear.

    Attributes:
        part: path of the module that sleeps; None: nothing does.
        call: the number of its call that sleeps.
        stage: the stage that must grow.
    """

    part: str | None
    call: int
    stage: str | None


def cases_of(model: nn.Module) -> dict[str, Case]:
    """The cases by name; the first one is the run without a sleep."""
    anatomy = anatomy_of(model)
    assert anatomy.head is not None
    return {
        "none": Case(None, 0, None),
        "vision": Case(anatomy.vision[0], 0, "vision_ms"),
        "projector": Case(anatomy.projector[0], 0, "projector_ms"),
        "block 0": Case(anatomy.blocks[0], 0, "llm_prefill_ms"),
        "last block": Case(anatomy.blocks[-1], 0, "llm_prefill_ms"),
        "head": Case(anatomy.head, 0, "prefill_rest_ms"),
        "decode step": Case(anatomy.head, 1, "decode_ms"),
    }


@contextmanager
def sleeping(model: nn.Module, case: Case, sleep_ms: float) -> Generator[None]:
    """The model with a sleep inside the forward of one part, at one of its calls."""
    if case.part is None:
        yield
        return
    module = model.get_submodule(case.part)
    original = module.forward
    calls = 0

    @functools.wraps(original)
    def slow(*args: object, **kwargs: object) -> object:
        nonlocal calls
        if calls == case.call:
            time.sleep(sleep_ms / 1e3)
        calls += 1
        return original(*args, **kwargs)

    module.forward = slow
    try:
        yield
    finally:
        del module.forward


def measure_rounds(
    built: BuiltModel, cases: Mapping[str, Case], rounds: int, sleep_ms: float
) -> list[dict[str, dict[str, float]]]:
    """For each round the stages of every case, in milliseconds."""
    batch, rng = built.batch(4), np.random.default_rng(0)
    measured: list[dict[str, dict[str, float]]] = []
    for _ in range(rounds + 1):
        row: dict[str, dict[str, float]] = {}
        for name in rng.permutation(list(cases)):
            with sleeping(built.model, cases[name], sleep_ms):
                timing = measure_generate(built.model, batch, max_new_tokens=NEW_TOKENS).timing
            assert timing.source == "measured", timing.unseen
            row[str(name)] = {stage: getattr(timing, stage) for stage in STAGES}
        measured.append(row)
    return measured[1:]  # the first round warms up


def main() -> None:
    """Measure, print, write."""
    parser = plain_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds (default 20)")
    parser.add_argument("--sleep-ms", type=float, default=20.0, help="length of each sleep (default 20)")
    options = parser.parse_args()
    built = bundled_on_one_thread()
    cases = cases_of(built.model)
    rounds = measure_rounds(built, cases, options.rounds, options.sleep_ms)
    conditions = read_conditions(built.model)
    print(f"{options.rounds} rounds, sleep {options.sleep_ms} ms, {conditions.cpu}, {conditions.threads} thread")
    for name, case in list(cases.items())[1:]:
        print(f"sleep in {name}:")
        for stage in STAGES:
            differences = np.asarray([row[name][stage] - row["none"][stage] for row in rounds])
            difference = PairedBootstrap(len(rounds), seed=0).mean(differences)
            print(f"  {stage:16} {format_estimate(difference, digits=2)} ms{' *' if stage == case.stage else ''}")
    print(write_result("stage_sleeps", conditions, {"sleep_ms": options.sleep_ms, "rounds": rounds}))


if __name__ == "__main__":
    main()
