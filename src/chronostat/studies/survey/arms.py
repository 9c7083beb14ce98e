"""An arm, what is asked of it, and one shot: one execution with all that was seen of it."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from transformers import GenerationConfig

from chronostat.errors import ConfigError, UnlikeConditions
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import SampleRequest, execute, explaining_errors, require_replayed, without_capturing
from chronostat.machine.memory import PeakMemory
from chronostat.measure.decoding import draw_seed
from chronostat.measure.generate import Measured, Waterfall
from chronostat.models.load import Vlm
from chronostat.records import Conditions, Execution, Setting, StageTiming

_OF_THE_MODEL = frozenset({"dtype", "cache", "decoding"})  # in these two models may differ: they are what is compared


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model under a setting, with the requests as its processor makes them.

    Attributes:
        name: for people; the arms of a survey have different ones.
    """

    name: str
    vlm: Vlm
    setting: Setting
    requests: Sequence[SampleRequest]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        repeats: executions of each request under each arm; where arms are compared on one request, the most on average.
        max_new_tokens: longest answer in tokens.
        exact_tokens: every answer is that long, also past its end.
        seed: draws the order, and what is sampled.
        sample: answers are sampled, as each model's generation_config says; else they are greedy.
    """

    repeats: int
    max_new_tokens: int
    exact_tokens: bool = False
    seed: int = 0
    sample: bool = False

    @property
    def generation_config(self) -> GenerationConfig | None:
        """What ``generate()`` is told beside the longest answer."""
        return GenerationConfig(min_new_tokens=self.max_new_tokens) if self.exact_tokens else None


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One execution of one request under one arm.

    Attributes:
        request: its number.
        peak_mib: most memory in use, as ``PeakMemory`` says; None: unknown.
        compiled: ``generate()`` compiled its decode step.
        waterfall: when each stage and token was.
    """

    arm: int
    request: int
    execution: Execution
    peak_mib: float | None
    compiled: bool
    waterfall: Waterfall

    @property
    def timing(self) -> StageTiming:
        """The stages."""
        timing = self.execution.timing
        assert timing is not None, "execute() raises where it does not measure"
        return timing

    @property
    def request_ms(self) -> float:
        """What a caller waited."""
        request_ms = self.execution.request_ms
        assert request_ms is not None, "execute() raises where it does not measure"
        return request_ms

    @property
    def shape(self) -> Hashable:
        """What a warm-up is for."""
        return self.execution.prompt_tokens, self.execution.image_tokens

    def stage_ms(self, name: str) -> float | None:
        """One latency by name; None where there is none."""
        if name in {"preprocess_ms", "request_ms"}:
            return getattr(self.execution, name)
        return getattr(self.timing, name)


def execute_arm(
    arm: Arm, asked: SampleRequest, plan: Plan, *, number: int = 0, seen: Callable[[Measured], None] | None = None
) -> Execution:
    """One execution of a request under an arm; ``number`` counts those before it, which sampled answers depend on."""
    return execute(
        arm.vlm.model,
        asked,
        setting=arm.setting,
        max_new_tokens=plan.max_new_tokens,
        generation_config=plan.generation_config,
        sampling_seed=draw_seed(plan.seed, asked.sample.id, arm.setting, number) if plan.sample else None,
        seen=seen,
    )


def shoot(arms: Sequence[Arm], arm: int, request: int, plan: Plan, drawn: Counter[tuple[int, int]]) -> Shot:
    """Execute once.

    Args:
        arms: all arms.
        arm: which of them.
        request: which of its requests.
        plan: how.
        drawn: how often each arm has answered each request; counts this time too. A sampled answer follows from it.

    Raises:
        ChronostatError: as ``execute`` does.
        MeasurementError: the model raised something else, or fell back from the engine that it runs by.
    """
    asked, number = arms[arm].requests[request], drawn[arm, request]
    drawn[arm, request] += 1
    what = f"{arms[arm].name}: {asked.sample.id}"
    with explaining_errors(what), PeakMemory(arms[arm].vlm.model.device) as peak:
        execution, measured = without_capturing(
            lambda seen: execute_arm(arms[arm], asked, plan, number=number, seen=seen)
        )
    require_replayed(measured, what)
    return Shot(
        arm=arm,
        request=request,
        execution=execution,
        peak_mib=peak.mib,
        compiled=measured.compiled,
        waterfall=measured.waterfall,
    )


def like_conditions(arms: Sequence[Arm], *, sample: bool = False) -> list[Conditions]:
    """The conditions of each arm.

    Raises:
        ConfigError: there is no arm, two have one name, an arm lacks requests, or it shall sample and does not.
        UnlikeConditions: they differ in more than what belongs to a model.
    """
    if not arms or len({arm.name for arm in arms}) < len(arms):
        raise ConfigError(f"arms {[arm.name for arm in arms]}: name at least one model and setting, each only once")
    if not arms[0].requests or len({len(arm.requests) for arm in arms}) > 1:
        raise ConfigError("each arm needs the same requests, at least one")
    conditions = [read_conditions(arm.vlm.model, sample=sample) for arm in arms]
    for arm, own in zip(arms[1:], conditions[1:], strict=True):
        differing = [text for text in own.differences(conditions[0])[0] if text.split(":")[0] not in _OF_THE_MODEL]
        if differing:
            raise UnlikeConditions(
                f"{arm.name} and {arms[0].name} would be measured under unlike conditions: {'; '.join(differing)}; "
                "make them alike, for attention with --attention"
            )
    return conditions
