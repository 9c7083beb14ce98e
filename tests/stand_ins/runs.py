"""A whole run on the Molmo stand-in: ready batches, a fake clock that its modules advance, and a session.

A setting takes the same time on every sample. Of ``full``, with two new tokens: 6 ms of vision, then 4 blocks of 3 ms
with 2 experts of 0.5 ms each in the prefill, and the same blocks once more in the decode step. So ``llm_prefill_ms`` is
16, ``prefill_ms`` 22 and ``total_ms`` 38.
"""

import functools
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

import chronostat.measure.call
from chronostat.config import Config, load_config
from chronostat.errors import DataError
from chronostat.execution.execute import BatchRequest
from chronostat.machine.disturbance import Facts, Watch
from chronostat.measure.clock import FakeClock
from chronostat.models.blocks import SkippedBlock
from chronostat.records import Setting
from chronostat.runs.session import Session, begin_with, reopen_with
from chronostat.runs.store import RunStore
from chronostat.runs.workload import BareModel, Workload
from stand_ins.molmo_like import PROMPT_TOKENS, MolmoLike, molmo_batch, molmo_like
from stand_ins.observing import delay

NEW_TOKENS = 2
VISION_MS, BLOCK_MS, EXPERT_MS = 6.0, 3.0, 0.5
COUNTS = {"train": 12, "validation": 10, "test": 6}
SMALL = (
    f"measure.max_new_tokens={NEW_TOKENS}",
    "train.calibration_executions=16",
    "train.select_executions=30",
    "train.executions=24",
    "validation.samples=6",
    "validation.mean_budgets=[0.7, 0.9]",
    "validation.deadlines=[0.8]",
)


def llm_prefill_ms(setting: Setting) -> float:
    blocks = 4 - len(setting["block_skip"])
    return blocks * (BLOCK_MS + EXPERT_MS * setting["moe_topk"])


def prefill_ms(setting: Setting) -> float:
    return VISION_MS + llm_prefill_ms(setting)


def calm(device: torch.device) -> Watch:
    """Where time is not real nothing real may disturb it."""
    return Watch(device, read=lambda: Facts(time_ns=0))


_RIGHT: dict[int, list[int]] = {}  # the weights are the same in each test


class Batches:
    """Ready batches; an answer is right if it is that of the whole model."""

    def __init__(self, model: MolmoLike, counts: dict[str, int]) -> None:
        self._splits = {split: [_request(model, split, i) for i in range(n)] for split, n in counts.items()}

    def split(self, name):
        if not self._splits[name]:
            raise DataError(f"there are no batches of split {name}")
        return self._splits[name]


def _request(model: MolmoLike, split: str, index: int) -> BatchRequest:
    seed = 1000 * len(split) + index
    if seed not in _RIGHT:
        answer = model.generate(**molmo_batch(seed), max_new_tokens=NEW_TOKENS)
        _RIGHT[seed] = answer[0, PROMPT_TOKENS:].tolist()
    return BatchRequest(
        batch=molmo_batch(seed),
        id=f"{split}-{index}",
        split=split,
        kind="odd" if index % 2 else "even",
        score=lambda ids: float(list(ids) == _RIGHT[seed]),
    )


class StandIn:
    """Model, data and clock of a run that takes no time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, counts: dict[str, int] | None = None) -> None:
        self.folder = folder
        self.clock = FakeClock()
        monkeypatch.setattr(chronostat.measure.call, "Watch", calm)
        self.model = molmo_like()
        self.batches = Batches(self.model, COUNTS | (counts or {}))
        delay(monkeypatch, self.clock, self.model.model.vision_backbone, VISION_MS)
        for block in self.model.model.transformer["blocks"]:
            delay(monkeypatch, self.clock, block, BLOCK_MS)
            _delay_by_experts(monkeypatch, self.clock, block.mlp)

    def workload(self, *overrides: str) -> Workload:
        return Workload.of(self.config(*overrides), BareModel(model=self.model, name="molmo-like"), self.batches)

    def config(self, *overrides: str) -> Config:
        return load_config(None, [*SMALL, *overrides])

    def session(self, *overrides: str, name: str = "run", progress=None):
        """A new run in ``folder / name``."""
        return begin_with(
            self.workload(*overrides),
            run_dir=self.folder / name,
            command="chronostat train",
            clock=self.clock,
            progress=progress,
        )

    def reopened(self, *overrides: str, name: str = "run"):
        """The same run, as another process would go on with it."""
        return reopen_with(self.workload(*overrides), RunStore.open(self.folder / name), clock=self.clock)

    def store(self, name: str = "run") -> RunStore:
        return RunStore.open(self.folder / name)


def _delay_by_experts(monkeypatch, clock, moe) -> None:
    original = moe.forward

    @functools.wraps(original)
    def slow(hidden):
        clock.advance_ms(EXPERT_MS * moe.top_k)
        return original(hidden)

    monkeypatch.setattr(moe, "forward", slow)


def fail_under(monkeypatch, session: Session, setting: Setting, samples: Collection[str] | None = None) -> None:
    """Let executions under a setting fail, on some samples (all if absent), as if memory had run out."""
    run, generate = session.runner.run, session.runner.model.generate
    current = []

    def watched_run(phase, index, request, draws, **options):
        current[:] = [request.id]
        return run(phase, index, request, draws, **options)

    def failing(**batch):
        answer = generate(**batch)
        if _setting_now(session) == setting and (samples is None or current[0] in samples):
            raise RuntimeError("out of memory")
        return answer

    monkeypatch.setattr(session.runner, "run", watched_run)
    monkeypatch.setattr(session.runner.model, "generate", failing)


def _setting_now(session: Session) -> Setting:
    blocks = session.runner.model.model.transformer["blocks"]
    running = [block for block in blocks if not isinstance(block, SkippedBlock)]
    skipped = tuple(i for i, block in enumerate(blocks) if isinstance(block, SkippedBlock))
    return Setting(moe_topk=running[0].mlp.top_k, block_skip=skipped)


def interrupt_after(monkeypatch, model: MolmoLike, calls: int) -> None:
    """Press ctrl-C in the middle of the ``generate()`` call that follows this many more."""
    vision = model.model.vision_backbone
    forward, left = vision.forward, [calls]

    def interrupted(images, image_masks):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return forward(images, image_masks)

    monkeypatch.setattr(vision, "forward", interrupted)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    return StandIn(tmp_path, monkeypatch)
