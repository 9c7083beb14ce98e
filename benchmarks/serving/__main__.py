"""What does serving add, and are budgets kept by those who wait? The bundled model on loopback.

::

    chronostat demo --set measure.latency_metric=request_ms --run-dir runs/serving
    python -m benchmarks.serving --controller runs/serving/controller [--guidellm FILE] [PART ...]

Parts, all of them unless some are named:

* overhead: the same requests through the server and by ``Controller.generate`` in this process, in turn.
  ``beyond_generate_ms`` is what the client waits beyond decoding the picture, choosing and ``generate()`` in the
  server, request by request; ``nothing_ms`` what it waits for the refusal of a path that there is none of;
* deadlines: the share kept at three budgets, by the controller, by ``full`` and by the fastest setting, with one
  request in flight and with Poisson arrivals at 60 % of what a server of ``full`` could answer at most;
* endurance: 2,000 requests in a row to the controller's server: memory by quarters, errors, answers that its log lacks;
* kill: kill -9 while four clients ask: answers that arrived and are not in the log;
* versus: latency of ``full`` over that of ``transformers serve``, each question to both in turn, and what each can do;
* load: what guidellm reports over what the server says of the same requests, streamed and with pictures. It is
  installed into a venv of its own.

Everything runs on one machine: clients take time from servers. A part ends after its number of requests, or when it has
asked for its seconds; all parts together are bounded by 16 minutes of asking and some 3 in which servers warm up.
Results go to ``benchmarks/results/serving.json``, each part with its raw values, conditions and commit as soon as it
ends. A part that is run anew replaces what is there of it; one that fails leaves that, and the next one runs.
"""

import json
import shutil
import sys
import traceback
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.kit.models import bundled_on_one_thread
from benchmarks.kit.options import plain_parser
from benchmarks.kit.results import RESULTS, commit, write_result
from benchmarks.serving.parts import PARTS, Part
from benchmarks.serving.tables import tables_of
from benchmarks.serving.task import Task
from chronostat.execution.conditions import read_conditions
from chronostat.records import Conditions


def main() -> int:
    """Run the parts, print each as it ends, and write; 1 if one failed."""
    options = _options()
    conditions = read_conditions(bundled_on_one_thread().model)
    return run_parts({name: PARTS[name] for name in options.parts or PARTS}, options, conditions)


def run_parts(parts: Mapping[str, Part], options: Namespace, conditions: Conditions) -> int:
    """Each part, whatever became of those before it.

    Args:
        parts: by name.
        options: of the command line.
        conditions: of this machine.

    Returns:
        1 if a part failed, of which the file keeps what an earlier run has found.
    """
    path = RESULTS / f"{options.name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["raw"] if path.is_file() else {}
    failed: list[str] = []
    for name, part in parts.items():
        task = Task(
            controller=options.controller,
            folder=options.runs,
            requests=options.requests or part.requests,
            seconds=options.seconds or part.seconds,
            guidellm=options.guidellm,
        )
        started_s = perf_counter()
        try:
            result = part.run(task)
        except Exception:  # noqa: BLE001 - said with its traceback and by the exit status; the next part may still do
            traceback.print_exc()
            failed.append(name)
            continue
        took_s = perf_counter() - started_s
        found[name] = {"commit": commit(), "took_s": took_s, "conditions": asdict(conditions), **result}
        print(f"{name}\n\n{tables_of(found[name])}\n", flush=True)
        write_result(options.name, conditions, found)
    if failed:
        print(f"failed: {', '.join(failed)}; of these the file is as before", file=sys.stderr)
    return int(bool(failed))


def _options() -> Namespace:
    parser = plain_parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--controller", type=Path, required=True, help="one that counts in request_ms")
    parser.add_argument("--requests", type=int, help=f"of each part, or of each row of it ({_defaults('requests')})")
    parser.add_argument("--seconds", type=float, help=f"after which a part asks no more ({_defaults('seconds')})")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where servers store requests (runs)")
    parser.add_argument("--name", default="serving", help="of the result (serving)")
    parser.add_argument("--guidellm", type=_command, default=_found("guidellm"), help="its command (the one on PATH)")
    return parser.parse_args()


def _defaults(bound: str) -> str:
    return ", ".join(f"{name} {getattr(part, bound):.0f}" for name, part in PARTS.items())


def _command(text: str) -> Path:
    return Path(text).absolute()


def _found(name: str) -> Path | None:
    at = shutil.which(name)
    return None if at is None else Path(at)


if __name__ == "__main__":
    raise SystemExit(main())
