"""How often are two settings put in the wrong order, and what does it cost to be right? Measured noise, replayed.

``python -m benchmarks.misranking record --seconds 360 --out FILE`` executes one request again and again on this
machine, whole and cut to one token (``series.py``). ``--model`` names a model of ``benchmarks/kit/models.py``.

``python -m benchmarks.misranking replay FILE`` takes stretches of that series as two arms that truly differ by 0, 2, 5,
10 or 20 %, and lets each way of comparing say which is slower (``replays.py``): the ``judge`` protocol, one
shot each, the median or the minimum of k in blocks, plain interleaved pairs. Printed are the share of wrong orders over
the cost in executed milliseconds (1 = one whole execution of each arm; warm-up apart), coverage and width of intervals,
false verdicts between equal arms, and which demands are met. Raw values go to ``benchmarks/results``, the curves to
``docs/images``, both under the recording's name.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.kit.models import build
from benchmarks.kit.options import plain_parser
from benchmarks.kit.results import ROOT, commit, write_result
from benchmarks.misranking.findings import demands, replay
from benchmarks.misranking.series import LENGTHS, METRICS, conditions_of, load, record, save
from benchmarks.misranking.tables import disturbances, draw, show
from chronostat.machine.stabilise import stabilised

_STRETCH_HELP = "enlarge the logarithms' deviations from the median: what a noisier machine would show (default 1)"


def main() -> None:
    """Record, or replay."""
    options = _options()
    {"record": _record, "replay": _replay}[options.verb](options)


def _record(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    built = build(options.model, options.device, getattr(torch, options.dtype))
    with stabilised():
        series = record(built, tiles=options.tiles, tokens=options.tokens, seconds=options.seconds, seed=0)
    save(series, options.out)
    print(f"{options.out}: {len(series.rows)} executions in {series.seconds:.0f} s, {series.unseen} without stages")


def _replay(options: argparse.Namespace) -> None:
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
    parser = plain_parser(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record", help="execute one request again and again")
    recording.add_argument("--seconds", type=float, default=360.0, help="how long (default 360)")
    recording.add_argument("--out", type=Path, required=True, help="NAME.json.gz")
    recording.add_argument("--model", default="bundled", help="of benchmarks/kit/models.py (default bundled)")
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
