"""A small problem with a known answer, and a stand-in for a model, for the tests of what learns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from chronostat.config import Config
from chronostat.control.drift import DriftTracker, Reference
from chronostat.control.failures import Failures
from chronostat.control.learners import Learner, Outcome, learner_by_name
from chronostat.control.observer import Observer
from chronostat.control.trainer import Trainer
from chronostat.evidence.evidence import Answers, Evidence
from chronostat.evidence.latency import Forecast
from chronostat.evidence.observation import Observation
from chronostat.execution.execute import BatchRequest, identity
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.space import ActionSpace
from chronostat.measure.call import Measured
from chronostat.measure.clock import FakeClock
from chronostat.policy.frontier import Requests
from chronostat.policy.policy import Policy
from chronostat.policy.scorers import QualityScorer
from chronostat.records import Budget, Execution, Setting, StageTiming, Step, Trial

SPACE = ActionSpace({"vision_tokens": (4, 2, 1), "block_skip": ((), (1,), (1, 2))})
BLOCKS = {(): 1.0, (1,): 0.5, (1, 2): 0.0}  # share of the blocks' work that is left
TOKENS = {4: 1.0, 2: 0.5, 1: 0.25}
WIDTH = 6  # of the token embeddings
FINE, DEEP = 0, 1  # two kinds of request: small print needs tokens, reasoning needs blocks


def latency_fraction(setting: Setting) -> float:
    """0.1 + 0.45 * tokens + 0.45 * blocks: 1 for full, 0.2125 for the cheapest."""
    return 0.1 + 0.45 * TOKENS[setting["vision_tokens"]] + 0.45 * BLOCKS[setting["block_skip"]]


def quality(kind: int, setting: Setting) -> float:
    """What is left of the one thing that the kind needs."""
    return TOKENS[setting["vision_tokens"]] if kind == FINE else BLOCKS[setting["block_skip"]]


LATENCIES = np.array([latency_fraction(setting) for setting in SPACE.settings])
QUALITIES = np.array([[quality(kind, setting) for setting in SPACE.settings] for kind in (FINE, DEEP)])
BUDGETS = tuple(
    Budget(kind=kind, fraction=fraction) for kind in ("mean", "deadline") for fraction in (0.3, 0.45, 0.6, 0.75, 0.9)
)


def observation(kind: int, rng: np.random.Generator) -> Observation:
    """One value that tells the kinds apart, and noise; all requests are of one size."""
    prompt = 0.1 * rng.standard_normal(WIDTH)
    prompt[2] += kind
    return Observation(prompt=prompt, tokens=np.full((len(SPACE), 2), 10.0))


def answers(kind: int, settings: NDArray[np.intp], rng: np.random.Generator) -> Answers:
    """What executing some settings shows: exact quality, latency with 10 % of noise."""
    noise = np.exp(0.1 * rng.standard_normal(len(settings)))
    return Answers(settings=settings, quality=QUALITIES[kind, settings], latency=LATENCIES[settings] * noise)


def make_evidence(calibrated: int = 6, seed: int = 0) -> Evidence:
    """What is known after all settings were executed on some requests."""
    rng = np.random.default_rng(100)
    evidence = Evidence(SPACE, [observation(i % 2, rng) for i in range(80)], seed)
    for i in range(calibrated):
        evidence.add(observation(i % 2, rng), answers(i % 2, np.arange(len(SPACE)), rng))
    return evidence


def config_of(learner: str, *overrides: tuple[str, str, object]) -> Config:
    """A configuration; overrides are (section, key, value)."""
    raw: dict[str, dict[str, object]] = {"train": {"learner": learner}}
    for section, key, value in overrides:
        raw.setdefault(section, {})[key] = value
    return Config.model_validate(raw)


@dataclass(kw_only=True)
class Pupil:
    """A learner of the small problem, with the evidence beside it."""

    name: str
    evidence: Evidence
    learner: Learner

    def outcome(self, step: int) -> Outcome:
        """What step i of the small problem measures; the evidence takes it, the learner does not."""
        rng = np.random.default_rng([7, step])
        kind, budget = int(rng.integers(2)), BUDGETS[rng.integers(len(BUDGETS))]
        seen = observation(kind, rng)
        proposal = self.learner.propose(seen, budget, 4, rng)
        settings, places = np.unique(proposal.settings, return_inverse=True)
        measured = answers(kind, settings, rng)
        self.evidence.add(seen, measured)
        return Outcome(
            observation=seen,
            settings=proposal.settings,
            probabilities=proposal.probabilities,
            quality=measured.quality[places],
            latency=measured.latency[places],
            budget=budget,
        )

    def teach(self, steps: range) -> None:
        """Learn the small problem for some steps."""
        for step in steps:
            self.learner.learn(self.outcome(step))

    def policy(self, legal: Sequence[bool] = (True,) * len(SPACE)) -> Policy:
        """What it knows, frozen."""
        return frozen(self.name, self.evidence, self.learner, np.array(legal))


def make_pupil(name: str, *overrides: tuple[str, str, object], seed: int = 0) -> Pupil:
    """A learner that has learned nothing yet, beside a calibration."""
    evidence = make_evidence()
    learner = learner_by_name(name)(SPACE, evidence, config_of(name, *overrides), BUDGETS, seed)
    return Pupil(name=name, evidence=evidence, learner=learner)


def frozen(name: str, evidence: Evidence, learner: Learner, legal: NDArray[np.bool_], margin: float = 0.0) -> Policy:
    """The policy that evidence and a learner make together."""
    return Policy.of(
        name,
        evidence.features,
        {
            "learned": learner.scorer(),
            "plain": QualityScorer.alike(evidence.quality.mean(), evidence.order(), evidence.prompts),
        },
        evidence.forecast(),
        Requests(prompts=evidence.prompts, tokens=evidence.tokens),
        evidence.quality.draws(evidence.rng(), 40),
        legal,
        margin,
    )


def judge(policy: Policy, budget: Budget, requests: int = 100) -> tuple[float, float]:
    """Mean quality and mean latency of a frozen policy on requests of both kinds, the coin dealt out evenly."""
    rng = np.random.default_rng(1_000_000)
    coins = rng.permutation((np.arange(requests) + 0.5) / requests)
    kinds = np.arange(requests) % 2
    chosen = [policy.decide(observation(kind, rng), budget, coin) for kind, coin in zip(kinds, coins, strict=True)]
    return float(QUALITIES[kinds, chosen].mean()), float(LATENCIES[chosen].mean())


def best_fixed(fraction: float) -> float:
    """Mean quality over both kinds of the best setting whose latency is within a fraction."""
    return float(QUALITIES.mean(axis=0)[fraction >= LATENCIES].max())


RESIDUALS = np.linspace(-1.98, 1.98, 100)


def forecast_of(latencies: Sequence[float] | NDArray[np.float64], features: int = 1, **changes: object) -> Forecast:
    """A made-up forecast: requests of one size, 10 % of noise in equal steps; features of a prompt count nothing."""
    count = len(latencies)
    values: dict[str, object] = {
        "image_tokens": np.full(count, 10.0),
        "text_tokens": 10.0,
        "base": np.log(latencies),
        "slopes": np.zeros((5, count)),
        "prompt": np.zeros(features),
        "smear": 1.0,
        "spread": np.full(count, 0.1),
        "unknown": np.zeros(count),
        "residuals": RESIDUALS,
        "allowed": 0.05,
    }
    return Forecast(**{**values, **changes})


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


def make_bench(learner: str = "direct", *, seed: int = 0, begun: bool = True, **options: object) -> Bench:
    """A trainer that executes by ``chronostat.execution.trials.execute``; the caller puts a fake in its place.

    Args:
        learner: its name.
        seed: of everything that is drawn.
        begun: it has learned the calibration of the small problem, and a learner has begun to propose.
        options: further ones of the trainer.
    """
    trials: list[Trial] = []
    steps: list[Step] = []
    clock = FakeClock()
    runner = make_runner(clock, trials.append)
    runner.drift = DriftTracker(Reference(full_ms=80.0), "prefill_ms")
    observer = Observer(runner.model, None, SPACE)
    evidence = Evidence(SPACE, [observer.seen(trial_input(i)) for i in range(20)], seed)
    trainer = Trainer(
        runner=runner,
        space=SPACE,
        observer=observer,
        evidence=evidence,
        metric="prefill_ms",
        full_ms=80.0,
        group_size=4,
        seed=seed,
        keep=steps.append,
        failures=Failures(SPACE),
        **options,
    )
    bench = Bench(trainer=trainer, trials=trials, steps=steps, clock=clock)
    if begun:
        rng = np.random.default_rng(0)
        for i in range(4):
            evidence.add(observer(trial_input(i)), answers(i % 2, np.arange(len(SPACE)), rng))
        begin(bench, learner)
    return bench


def begin(bench: Bench, learner: str = "direct") -> None:
    """A learner proposes from now on."""
    trainer = bench.trainer
    trainer.evidence.fit()
    made = learner_by_name(learner)(SPACE, trainer.evidence, config_of(learner), BUDGETS, trainer.seed)
    trainer.begin(made, BUDGETS)


def known(evidence: Evidence, learner: Learner | None = None) -> dict[str, NDArray[np.float64]]:
    """All that was learned, as arrays by name."""
    evidence.update()
    arrays = {"quality": evidence.quality.mean(), "draws": evidence.quality.draws(np.random.default_rng(0), 3)}
    arrays |= {f"forecast.{name}": value for name, value in evidence.forecast().state().items()}
    if learner is not None:
        arrays |= {f"scorer.{name}": value for name, value in learner.scorer().state().items()}
    return arrays


def differing(first: Mapping[str, NDArray[np.float64]], second: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """Names of the arrays that are not equal bit for bit."""
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not np.array_equal(value, second[name])]
