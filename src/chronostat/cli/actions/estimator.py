"""What chronostat estimator evaluate does: how wrong estimates are, beside measuring."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from chronostat.cli.output import write_json
from chronostat.runs.store import RunStore
from chronostat.runs.stored import stored_config
from chronostat.studies.estimator import remeasure
from chronostat.studies.estimator.evaluation import APART, Evaluation


def evaluate(
    run: Path, data: Path | None, seconds: float, requests: int | None, json_file: Path | None, out: Console
) -> None:
    """Execute held-out requests twice, and compare the estimator of a run with measuring once."""
    store = RunStore.open(run)
    with out.status(f"measuring held-out requests twice, at most {seconds:.0f} s"):
        evaluation = remeasure.evaluate(store, stored_config(store, data), seconds=seconds, requests=requests)
    out.print(evaluation_table(evaluation))
    if json_file is not None:
        write_json(json_file, evaluation.to_json())
        out.print(f"written: {json_file}")


def evaluation_table(evaluation: Evaluation) -> Table:
    """The two ways of knowing a latency, side by side."""
    estimated, once = evaluation.estimated, evaluation.measured_once
    table = Table(
        "",
        "estimated",
        "measured once",
        title=f"{evaluation.executions} executions of {evaluation.requests} held-out requests; both against a second "
        "measurement of each",
        title_justify="left",
    )
    table.add_row("prefill_ms, median error", _percent(estimated.prefill_error), _percent(once.prefill_error))
    table.add_row("prefill_ms, bias", f"{estimated.prefill_bias:+.1%}", f"{once.prefill_bias:+.1%}")
    table.add_row("decode_ms_per_token, median error", _percent(estimated.decode_error), _percent(once.decode_error))
    wrong_order = f"wrong order of {evaluation.pairs} pairs at least {APART:.0%} apart"
    table.add_row(wrong_order, _percent(estimated.wrong_order), _percent(once.wrong_order))
    budgets = f"wrong about {len(evaluation.budgets_ms)} budgets"
    table.add_row(budgets, _percent(estimated.wrong_budget), _percent(once.wrong_budget))
    table.caption = (
        f"Estimates learned from {evaluation.learned_from:,} measured executions of {evaluation.run}. The second "
        "measurement is as noisy as the first: what both columns share is noise, not error."
    )
    table.caption_justify = "left"
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
