"""What does a server add to a request? Blocks through it and by ``Controller.generate`` in this process, in turn."""

from time import perf_counter
from typing import Any

from benchmarks.kit.estimates import ratio_interval
from benchmarks.serving.asking import NEW_TOKENS, Client, Question, Told, questions
from benchmarks.serving.servers import ours
from benchmarks.serving.task import WARMING, Task, blocks, columns, raw, spread, stored
from chronostat.control.controller import Controller, load_controller
from chronostat.models.load import Vlm, load_vlm
from chronostat.records import plain

_BLOCK = 20
_LOOSE = 100  # budgets as a multiple of full: it is chosen on both sides


def overhead(task: Task) -> dict[str, Any]:
    """See the module; pairs are of the same question."""
    asked = questions(task.requests)
    vlm = load_vlm(device="cpu")
    controller = load_controller(task.controller, vlm.model, vlm.processor)
    loose_ms = _LOOSE * controller.full_ms
    served: list[Told] = []
    own_ms: list[float] = []
    nothing_ms: list[float] = []
    with ours("overhead", task.folder, "--controller", str(task.controller)) as server:
        client = Client(server)
        for question in asked[:WARMING]:
            client.ask(question, loose_ms)
            _generate_ms(question, vlm, controller, loose_ms)
        for block in task.in_time(blocks(asked, _BLOCK)):
            served += [client.ask(question, loose_ms) for question in block]
            nothing_ms += [client.nothing_ms(question) for question in block]
            own_ms += [_generate_ms(question, vlm, controller, loose_ms) for question in block]
        server.end()
        log = [stored(server)[told.id] for told in served]
    client_ms = [told.client_ms for told in served]
    beyond_ms = [told.client_ms - row["wall_ms"] - row["image_ms"] for told, row in zip(served, log, strict=True)]
    return {
        "requests": len(served),
        "sources": {
            "client_ms, generate_in_this_process_ms": "perf_counter of this process around the request, or the call",
            "beyond_generate_ms": "client_ms less wall_ms and image_ms of the same request in the server's log",
            "to_its_turn_ms, picture_ms": "queue_ms and image_ms of the server's log",
            "nothing_ms": "as client_ms, of the same bytes sent to a path that there is none of, between the blocks",
        },
        "client_ms": spread(client_ms),
        "generate_in_this_process_ms": spread(own_ms),
        "client_less_generate_ms": spread([one - other for one, other in zip(client_ms, own_ms, strict=True)]),
        "client_over_generate": plain(ratio_interval(client_ms, own_ms)),
        "beyond_generate_ms": spread(beyond_ms),
        "nothing_ms": spread(nothing_ms),
        "to_its_turn_ms": spread([row["queue_ms"] for row in log]),
        "picture_ms": spread([row["image_ms"] for row in log]),
        "raw": {
            **columns(served),
            "generate_in_this_process_ms": raw(own_ms),
            "nothing_ms": raw(nothing_ms),
            "wall_ms": raw(row["wall_ms"] for row in log),
            "image_ms": raw(row["image_ms"] for row in log),
        },
    }


def _generate_ms(question: Question, vlm: Vlm, controller: Controller, budget_ms: float) -> float:
    images = question.sample.load_images()
    start_s = perf_counter()
    controller.generate(
        vlm.model,
        vlm.processor,
        images,
        question.sample.prompt,
        budget_ms=budget_ms,
        kind="deadline",
        max_new_tokens=NEW_TOKENS,
    )
    return (perf_counter() - start_s) * 1e3
