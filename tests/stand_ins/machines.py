"""A machine whose stages take what is said of them, and a controller of the bundled model that was trained there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice

import numpy as np
from PIL import Image

from chronostat.config import load_config
from chronostat.control.controller import Controller
from chronostat.control.controller_files import ControllerMetadata
from chronostat.control.observer import Observer
from chronostat.data.demo import DemoTask
from chronostat.data.demo.scenes import CANVAS_PX
from chronostat.evidence.evidence import Evidence
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import SampleRequest, identity
from chronostat.knobs.registry import find_space
from chronostat.knobs.space import ActionSpace
from chronostat.models.load import Vlm
from chronostat.policy.frontier import Requests
from chronostat.policy.policy import Policy
from chronostat.policy.scorers import QualityScorer
from chronostat.records import Execution, Setting, StageTiming

BLOCKS, TEXT_TOKENS = 8, 40
UNSEEN, TAUGHT = 120, 160  # requests that are looked at, and executed


@dataclass(kw_only=True)
class Machine:
    """Stands where ``execute`` stands.

    Attributes:
        vision: what the vision tower takes, relative to where the controller was trained.
        prefill: likewise of the decoder's prefill.
        decode: likewise of its steps.
        noise: deviation of the logarithm of a latency.
        fails: settings whose executions fail.
        executed: settings in their order.
    """

    vision: float = 1.0
    prefill: float = 1.0
    decode: float = 1.0
    noise: float = 0.1
    seed: int = 0
    fails: frozenset[Setting] = frozenset()
    executed: list[Setting] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def typical_ms(self, setting: Setting, prompt: str) -> tuple[float, float]:
        """Prefill and decode without noise; questions of different length are answered at different length.

        Of ``full`` 36 + 8 * 312 * .026 = 101 ms, and 8 * 1.1 = 8.8 ms for each of 2 to 4 steps.
        """
        tokens, experts = setting["vision_tokens"], setting["moe_topk"]
        blocks = BLOCKS - len(setting["block_skip"])
        vision_ms = self.vision * (8.8 + 0.1 * tokens)
        llm_ms = self.prefill * blocks * (tokens + TEXT_TOKENS) * (0.010 + 0.004 * experts)
        return vision_ms + llm_ms, self.decode * blocks * (0.5 + 0.15 * experts) * (2 + len(prompt) % 3)

    def total_ms(self, setting: Setting, prompt: str) -> float:
        """Mean with noise: of a lognormal one."""
        return sum(self.typical_ms(setting, prompt)) * float(np.exp(self.noise**2 / 2))

    def __call__(
        self,
        model: object,
        request: SampleRequest,
        *,
        setting: Setting,
        seen: Callable[..., None] | None = None,
        **options: object,
    ) -> Execution:
        self.executed.append(setting)
        if setting in self.fails:
            raise RuntimeError("out of memory")
        factor = float(np.exp(self._rng.normal(0.0, self.noise)))
        prefill_ms, decode_ms = (factor * each for each in self.typical_ms(setting, request.sample.prompt))
        timing = StageTiming(
            source="measured",
            total_ms=prefill_ms + decode_ms,
            new_tokens=3,
            decode_steps=2,
            prefill_ms=prefill_ms,
            decode_ms=decode_ms,
        )
        if seen is not None:
            seen(_Seen())
        return Execution(**identity(request), setting=setting, timing=timing)

    def executions(
        self, requests: Sequence[SampleRequest], space: ActionSpace, each: int = 5
    ) -> list[tuple[SampleRequest, list[Execution]]]:
        """Of each request ``full`` and others, as they are handed over to be learned from."""
        order = np.random.default_rng(self.seed).permutation(np.arange(1, len(space)))
        others = cycle([space.settings[i] for i in order])
        return [
            (request, [self(None, request, setting=s) for s in (space.full, *islice(others, each - 1))])
            for request in requests
        ]


class _Seen:
    """What is measured beyond the record: nothing was captured, nothing fell back."""

    captured, fell_back = False, None


def requests_of(vlm: Vlm, split: str, count: int, first: int = 0) -> list[SampleRequest]:
    """Samples of the bundled task with a blank picture of the same size: nothing here looks at it."""
    blank = Image.new("RGB", (CANVAS_PX, CANVAS_PX))
    samples = DemoTask().split(split)[first : first + count]
    return [SampleRequest(sample=each, images=[blank], processor=vlm.processor, quality=None) for each in samples]


def trained_on(vlm: Vlm, machine: Machine, *, metric: str = "total_ms") -> Controller:
    """A controller that has learned from executions on a machine; more tokens answer more of the longer questions."""
    space, _ = find_space(vlm.model, vlm.processor, {})
    observer = Observer(vlm.model, vlm.processor, space)
    evidence = Evidence(space, [observer(each) for each in requests_of(vlm, "train", UNSEEN)], 0)
    rng = np.random.default_rng(0)
    full_ms = float(np.median([machine.total_ms(space.full, r.sample.prompt) for r in requests_of(vlm, "train", 30)]))
    for request in requests_of(vlm, "train", TAUGHT, first=UNSEEN):
        settings = np.unique([0, *rng.permutation(len(space))[:4].tolist()])
        took = [machine(None, request, setting=space.settings[i]) for i in settings]
        seen = observer(request)
        prompt = evidence.features(seen.prompt[None])[0]
        quality = [_quality(space.settings[i], request.sample.prompt) for i in settings]
        evidence.quality.add(prompt, settings, np.array(quality))
        fractions = [execution.latency_ms(metric) / full_ms for execution in took]
        evidence.latency.add(prompt, seen.tokens, settings, np.array(fractions))
    evidence.fit()
    machine.executed.clear()
    return Controller(
        policy=_policy(space, evidence),
        observer=observer,
        metadata=_metadata(vlm, space, metric, full_ms * evidence.latency.full),
    )


def _quality(setting: Setting, prompt: str) -> float:
    needed = (16, 80, 160, 272)[len(prompt) % 4]
    return float(setting["vision_tokens"] >= needed) * (1 - 0.05 * len(setting["block_skip"]))


def _policy(space: ActionSpace, evidence: Evidence) -> Policy:
    order, by_setting = evidence.order(), evidence.quality.mean()
    scorers = {
        "learned": QualityScorer(by_setting=by_setting, order=order),
        "plain": QualityScorer.alike(by_setting, order, evidence.prompts),
    }
    return Policy.of(
        "direct",
        evidence.features,
        scorers,
        replace(evidence.forecast(), controller=0.01),
        Requests(prompts=evidence.prompts, tokens=evidence.tokens),
        evidence.quality.draws(evidence.rng(), 20),
        np.ones(len(space), dtype=np.bool_),
        0.02,
    )


def _metadata(vlm: Vlm, space: ActionSpace, metric: str, full_ms: float) -> ControllerMetadata:
    return ControllerMetadata(
        levels=space.levels,
        pruned=space.pruned,
        metric=metric,
        full_ms=full_ms,
        learner="direct",
        config=load_config(None, [f"measure.latency_metric={metric}", "model.device=cpu"]),
        budgets=(),
        model=vlm.name,
        model_fingerprint=vlm.fingerprint,
        conditions=read_conditions(vlm.model),
        executions=0,
    )
