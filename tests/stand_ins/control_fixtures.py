"""A small problem with a known answer, and a stand-in for a model, for the tests of what learns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from chronostat.config import Config
from chronostat.control.drift import DriftTracker, Reference
from chronostat.control.failures import Failures
from chronostat.control.learners import Learner, Outcome, learner_by_name
from chronostat.control.observation import Observer
from chronostat.control.trainer import Trainer
from chronostat.execution.execute import BatchRequest, identity
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.space import ActionSpace
from chronostat.measure.call import Measured
from chronostat.measure.clock import FakeClock
from chronostat.records import Budget, Execution, Setting, StageTiming, Step, Trial

SPACE = ActionSpace({"vision_tokens": (4, 2, 1), "block_skip": ((), (1,), (1, 2))})
BLOCKS = {(): 1.0, (1,): 0.5, (1, 2): 0.0}  # share of the blocks' work that is left
TOKENS = {4: 1.0, 2: 0.5, 1: 0.25}
OBSERVATION_SIZE = 6
FINE, DEEP = 0, 1  # two kinds of request: small print needs tokens, reasoning needs blocks


def latency_fraction(setting: Setting) -> float:
    """0.1 + 0.45 * tokens + 0.45 * blocks: 1 for full, 0.2125 for the cheapest."""
    return 0.1 + 0.45 * TOKENS[setting["vision_tokens"]] + 0.45 * BLOCKS[setting["block_skip"]]


def quality(kind: int, setting: Setting) -> float:
    """What is left of the one thing that the kind needs."""
    return TOKENS[setting["vision_tokens"]] if kind == FINE else BLOCKS[setting["block_skip"]]


LATENCIES = [latency_fraction(setting) for setting in SPACE.settings]
BUDGETS = tuple(
    Budget(kind=kind, fraction=fraction) for kind in ("mean", "deadline") for fraction in (0.3, 0.45, 0.6, 0.75, 0.9)
)


def observation(kind: int, generator: torch.Generator) -> Tensor:
    """One value that tells the kinds apart, and noise."""
    noise = torch.rand(OBSERVATION_SIZE, generator=generator)
    noise[2] = float(kind)
    return noise


def make_learner(name: str, *overrides: tuple[str, str, object], seed: int = 0) -> Learner:
    """A learner of the small problem; overrides are (section, key, value)."""
    raw: dict[str, dict[str, object]] = {"train": {"learner": name}}
    for section, key, value in overrides:
        raw.setdefault(section, {})[key] = value
    config = Config.model_validate(raw)
    return learner_by_name(name)(SPACE, OBSERVATION_SIZE, config, seed, LATENCIES, BUDGETS)


def outcome(learner: Learner, step: int) -> Outcome:
    """What step i of the small problem measures: exact quality, latency with 10 % of noise."""
    generator = torch.Generator().manual_seed(step)
    kind = int(torch.randint(2, (), generator=generator))
    budget = BUDGETS[int(torch.randint(len(BUDGETS), (), generator=generator))]
    seen = observation(kind, generator)
    draws = learner.propose(seen, budget, 4, generator)
    noise = 1 + 0.1 * torch.randn(len(LATENCIES), generator=generator).clamp(-2, 2)
    return Outcome(
        observation=seen,
        settings=draws,
        quality=torch.tensor([quality(kind, SPACE.settings[i]) for i in draws.tolist()]),
        latency=(torch.tensor(LATENCIES) * noise)[draws],
        budget=budget,
    )


def teach(learner: Learner, steps: range) -> None:
    """Learn the small problem for some steps."""
    for step in steps:
        learner.learn(outcome(learner, step))


def judge(learner: Learner, budget: Budget, requests: int = 100) -> tuple[float, float]:
    """Mean quality and mean latency of the frozen policy on requests of both kinds."""
    generator = torch.Generator().manual_seed(1_000_000)
    scores = []
    for i in range(requests):
        setting = SPACE.settings[learner.decide(observation(i % 2, generator), budget)]
        scores.append((quality(i % 2, setting), latency_fraction(setting)))
    qualities, latencies = zip(*scores, strict=True)
    return sum(qualities) / requests, sum(latencies) / requests


def settle(learner: Learner) -> None:
    """Hold the policy to its budgets on requests that it has not seen."""
    generator = torch.Generator().manual_seed(2_000_000)
    learner.settle(torch.stack([observation(i % 2, generator) for i in range(200)]))


def best_fixed(fraction: float) -> float:
    """Mean quality over both kinds of the best setting whose latency is within a fraction."""
    return max(
        (quality(FINE, setting) + quality(DEEP, setting)) / 2
        for setting in SPACE.settings
        if latency_fraction(setting) <= fraction
    )


class StandIn(PreTrainedModel):
    """As much of a model as an observer and a runner look at."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.embedding = nn.Embedding(8, 4, dtype=torch.float32)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.arange(32.0).reshape(8, 4))
        self.generation_config = GenerationConfig()
        self.config = None  # names no image token

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding


def trial_input(index: int) -> BatchRequest:
    """A ready batch whose first token is its kind."""
    return BatchRequest(batch={"input_ids": torch.tensor([[index % 2, 3]])}, id=f"s{index}")


@dataclass
class FakeExecutions:
    """Stands where ``execute`` stands: advances the fake clock by what a setting costs, and counts its calls.

    Attributes:
        full_ms: latency of full.
        fails: settings that raise.
    """

    full_ms: float = 80.0
    fails: frozenset[Setting] = frozenset()
    calls: list[Setting] = field(default_factory=list)

    def __call__(
        self,
        model: PreTrainedModel,
        request: BatchRequest,
        *,
        setting: Setting,
        max_new_tokens: int,
        controller_ms: float,
        clock: FakeClock,
        time_limit_s: float | None,
        sampling_seed: int | None,
        seen: Callable[[Measured], None],
    ) -> Execution:
        self.calls.append(setting)
        if setting in self.fails:
            raise RuntimeError("out of memory")
        start_ns = clock.host_ns()
        clock.advance_ms(latency_fraction(setting) * self.full_ms)
        prefill_ms = clock.host_ms_since(start_ns)
        clock.advance_ms(5.0)
        timing = StageTiming(
            source="measured",
            total_ms=clock.host_ms_since(start_ns),
            new_tokens=1,
            decode_steps=0,
            prefill_ms=prefill_ms,
        )
        seen(Measured(output_ids=(1,), sequences=request.batch["input_ids"], timing=timing))
        return Execution(
            **identity(request),
            setting=setting,
            timing=timing,
            quality=quality(int(request.batch["input_ids"][0, 0]), setting),
            controller_ms=controller_ms,
        )


@dataclass(kw_only=True)
class Bench:
    """A trainer on fake executions, with what it stored."""

    trainer: Trainer
    trials: list[Trial]
    steps: list[Step]
    clock: FakeClock


def make_runner(clock: FakeClock, keep: Callable[[Trial], None]) -> TrialRunner:
    """A runner on the stand-in."""
    return TrialRunner(
        model=StandIn(),
        processor=None,
        quality=None,
        full=SPACE.full,
        max_new_tokens=1,
        clock=clock,
        seed=0,
        keep=keep,
        anchor_every_s=3.0,
    )


def make_bench(learner: str = "direct", *, seed: int = 0, **options: object) -> Bench:
    """A trainer that executes by ``chronostat.execution.trials.execute``; the caller puts a fake in its place."""
    trials: list[Trial] = []
    steps: list[Step] = []
    clock = FakeClock()
    runner = make_runner(clock, trials.append)
    runner.drift = DriftTracker(Reference(full_ms=80.0), "prefill_ms")
    observer = Observer(runner.model, None)
    config = Config()
    trainer = Trainer(
        runner=runner,
        space=SPACE,
        observer=observer,
        learner=learner_by_name(learner)(SPACE, observer.size, config, seed, LATENCIES, BUDGETS),
        budgets=BUDGETS,
        metric="prefill_ms",
        full_ms=80.0,
        group_size=4,
        seed=seed,
        keep=steps.append,
        failures=Failures(SPACE),
        **options,
    )
    return Bench(trainer=trainer, trials=trials, steps=steps, clock=clock)


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not equal bit for bit."""
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not torch.equal(value, second[name])]
