"""What does serving add, and are budgets kept by those who wait? The bundled model on loopback.

::

    chronostat demo --set measure.latency_metric=request_ms --run-dir runs/serving
    python -m benchmarks.serving --controller runs/serving/controller [--requests 200] [PART ...]

Parts, all of them unless some are named:

* overhead: the same requests through the server and by ``Controller.generate`` in this process, in turn. ``added_ms``
  is what the client waits beyond decoding the picture, choosing and ``generate()`` in the server, request by request;
* deadlines: the share kept at three budgets, by the controller, by ``full`` and by the fastest setting, with one
  request in flight and with Poisson arrivals at 60 % of what a server of ``full`` could answer at most;
* endurance: ``--requests`` in a row (2,000 for the record): memory by quarters, requests without an answer;
* kill: kill -9 while four clients ask: answers that arrived and are not in the store;
* versus: latency of ``full`` over that of ``transformers serve``, each question to both in turn.

Everything runs on one machine: clients take time from servers. Raw values go to ``benchmarks/results/serving.json``; a
part that is run anew replaces what is there of it.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.kit.estimates import markdown_table
from benchmarks.kit.models import bundled_on_one_thread
from benchmarks.kit.options import plain_parser
from benchmarks.kit.results import RESULTS, write_result
from benchmarks.serving.parts import PARTS, Task
from chronostat.execution.conditions import read_conditions


def main() -> None:
    """Run the parts, print each as it ends, and write."""
    parser = plain_parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--controller", type=Path, required=True, help="one that counts in request_ms")
    parser.add_argument("--requests", type=int, default=200, help="of each part, or of each row of it (200)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where servers store requests (runs)")
    parser.add_argument("--name", default="serving", help="of the result (serving)")
    arguments = parser.parse_args()
    task = Task(controller=arguments.controller, folder=arguments.runs, requests=arguments.requests)
    conditions = read_conditions(bundled_on_one_thread().model)
    path = RESULTS / f"{arguments.name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["raw"] if path.is_file() else {}
    for name in arguments.parts or PARTS:
        found[name] = PARTS[name](task)
        print(f"{name}\n\n{(deadline_table if name == 'deadlines' else table)(found[name])}\n")
        write_result(arguments.name, conditions, found)


def deadline_table(found: dict[str, Any]) -> str:
    """A row for each server and budget: what was kept, by what was charged, and what was right, in both ways to ask."""
    heads = ["server", "budget / full", "one in flight: kept", "right", "Poisson: kept", "right"]
    rows = [heads]
    for name, row in found["rows"].items():
        server, _, fraction = name.rpartition(" ")
        ways = [row[way] for way in ("one in flight", "poisson")]
        rows.append(
            [server, fraction, *(text for way in ways for text in (_interval(way["kept"]), f"{way['right']:.3f}"))]
        )
    return markdown_table(rows)


def table(found: dict[str, Any]) -> str:
    """Values by their place in what was found."""
    return markdown_table([["what", "value"], *([place, text] for place, text in _flat(found))])


def _flat(found: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        place = f"{before}{name}"
        if isinstance(value, dict) and value.keys() == {"point", "low", "high"}:
            rows.append((place, _interval(value)))
        elif isinstance(value, dict) and value.keys() == {"p5", "p50", "p95"}:
            rows.append((place, f"{value['p50']:.2f} ({value['p5']:.2f} to {value['p95']:.2f})"))
        elif isinstance(value, dict):
            rows += _flat(value, f"{place}, ")
        else:
            rows.append((place, f"{value:.3f}" if isinstance(value, float) else str(value)))
    return rows


def _interval(value: dict[str, float]) -> str:
    return f"{value['point']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
