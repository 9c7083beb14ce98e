"""Are deadlines kept? The controller at three budgets, ``full`` and the fastest setting, alone and under load."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np

from benchmarks.serving.asking import Client, Question, Told, poisson, questions
from benchmarks.serving.servers import Server, ours
from benchmarks.serving.task import WARMING, Task, blocks, columns, kept
from chronostat.control.controller_files import read_controller
from chronostat.records import Setting

FRACTIONS = (0.5, 0.7, 0.9)  # of what full takes: the budgets
LOAD = 0.6  # of what a server of full could answer at most
WAYS = ("one in flight", "poisson")
_BLOCK = 50


@dataclass(kw_only=True)
class Arm:
    """One server under one budget.

    Attributes:
        fraction: of ``full``: the budget it is asked with; None: none is named, for its answers are the same under all.
        told: by the way of asking.
    """

    server: Server
    fraction: float | None
    told: dict[str, list[Told]] = field(default_factory=lambda: {way: [] for way in WAYS})

    @property
    def name(self) -> str:
        """In the file."""
        return self.server.name if self.fraction is None else f"{self.server.name} {self.fraction}"

    def ask(self, block: Sequence[Question], full_ms: float, seed: int) -> None:
        """A block one by one, then the same at moments of their own."""
        client, budget_ms = Client(self.server), None if self.fraction is None else self.fraction * full_ms
        self.told["one in flight"] += [client.ask(question, budget_ms) for question in block]
        self.told["poisson"] += poisson(self.server, block, per_s=LOAD / full_ms * 1e3, budget_ms=budget_ms, seed=seed)


def deadlines(task: Task) -> dict[str, Any]:
    """Every block of questions goes to all arms, in an order drawn for each block, so that a drift meets all alike."""
    asked, order = questions(task.requests), np.random.default_rng(0)
    levels = read_controller(task.controller)[0].controller.levels
    fastest = Setting({knob: values[-1] for knob, values in levels.items()})
    with ExitStack() as servers:
        fixed = [
            servers.enter_context(ours("full", task.folder)),
            servers.enter_context(ours("fastest", task.folder, "--setting", str(fastest))),
        ]  # these first: the controller is calibrated while they are still
        held = servers.enter_context(ours("controller", task.folder, "--controller", str(task.controller)))
        arms = [Arm(server=held, fraction=fraction) for fraction in FRACTIONS]
        arms += [Arm(server=server, fraction=None) for server in fixed]
        began = _said(held)
        full_ms = float(began["full_ms"])
        for server in (held, *fixed):
            client = Client(server)
            for question in asked[:WARMING]:
                client.ask(question)
        for number, block in enumerate(task.in_time(blocks(asked, _BLOCK))):
            for place in order.permutation(len(arms)):
                arms[place].ask(block, full_ms, seed=number)
        ended = _said(held)
    return {
        "requests": len(arms[0].told["poisson"]),
        "sources": {
            "kept": "charged_ms of each answer: the server's clock, from receipt to the end of generate()",
            "kept_as_the_client_waits": "perf_counter of the client, from before it sends to the last byte",
            "full_ms": "/v1/models of the controller's server before the first request",
        },
        "full_ms": full_ms,
        "fastest": str(fastest),
        "poisson_per_s": LOAD / full_ms * 1e3,
        "calibrated": [began["calibrated"], ended["calibrated"]],
        "rows": rows(arms, full_ms),
        "raw": {arm.name: {way: columns(told) for way, told in arm.told.items()} for arm in arms},
    }


def rows(arms: Sequence[Arm], full_ms: float) -> dict[str, Any]:
    """One for each server and budget, in which each way of asking says what was kept."""
    found: dict[str, Any] = {}
    for arm in arms:
        for fraction in FRACTIONS if arm.fraction is None else (arm.fraction,):
            budget_ms = fraction * full_ms
            ways = {way: kept(told, budget_ms) for way, told in arm.told.items()}
            found[f"{arm.server.name} {fraction}"] = {"budget_ms": budget_ms, **ways}
    return found


def _said(server: Server) -> dict[str, Any]:
    (model,) = httpx2.get(f"{server.address}/v1/models").json()["data"]
    return model["chronostat"]
