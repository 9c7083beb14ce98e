"""Every default of Chronostat, in frozen models that refuse unknown keys.

A configuration is a TOML file; ``--set section.key=value`` overrides it. The docstring under a field is its help and
its documentation (docs/config.md is made from this file).
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, ValidationError, model_validator
from pydantic_core import ErrorDetails

from chronostat.errors import ConfigError
from chronostat.records import Budget, LatencyMetric
from chronostat.records.choices import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_THREADS,
    MOST_THREADS,
    Attention,
    DeviceName,
    DtypeName,
    EngineChoice,
)

Fraction = Annotated[float, Field(gt=0, le=2)]
Seconds = Annotated[float, Field(gt=0)]


class Frozen(BaseModel):
    """Immutable; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ModelConfig(Frozen):
    """Which model runs, and how it is loaded."""

    path: str | None = None
    """Model directory in the ``save_pretrained`` format; the bundled model if absent."""
    device: DeviceName = "auto"
    """Where it runs; ``auto`` takes CUDA if there is a device."""
    dtype: DtypeName = "auto"
    """Type of the weights; ``auto`` is float32 on the CPU and bfloat16 on CUDA."""
    attention: Attention = "auto"
    """Implementation of all attention; ``auto`` leaves the choice to transformers."""
    engine: EngineChoice = "eager"
    """How ``generate()`` runs: ``graph`` replays the decoder from captured graphs (docs/engine.md), ``auto`` does so on
    CUDA where the model allows it. A condition of every number."""
    most_graphs: Annotated[int, Field(ge=2)] = 256
    """Captured graphs that are kept; the one used longest ago leaves first. A setting needs one for its decode steps,
    one for each length of prompt, and one for each vision tower, projector and shape of images."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. Off: such a checkpoint is refused."""
    layout: Mapping[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Module paths of ``vision``, ``projector``, ``blocks`` and ``head`` where they are not found by themselves."""
    template: Mapping[str, bool | int | str] = Field(default_factory=dict)
    """What the chat template is told, such as ``enable_thinking = false``."""


class DataConfig(Frozen):
    """Which samples, and how answers are scored."""

    path: str | None = None
    """File or folder of own samples in any layout of docs/data.md; the samples of ``task`` if absent."""
    task: str = "demo"
    """``demo``: the bundled task. ``demo_sizes``: its questions about one to six pictures of different size, so that
    latencies differ by far. ``lmms:NAME``: a task of lmms-eval, asked about the local ``files``."""
    files: tuple[str, ...] = ()
    """Parquet or JSON files that a task of lmms-eval is about; read with ``lmms:NAME`` only."""
    columns: Mapping[str, str] = Field(default_factory=dict)
    """Columns of ``path`` by field, such as ``prompt = "query"``, where they have other names; empty: not read."""
    shuffle: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of own samples, which is not that of the file."""
    quality: str | None = None
    """How an answer is scored: a name of docs/data.md, or a function as ``package.module:function``; absent: ``exact``,
    or as the task of lmms-eval is scored."""


class KnobsConfig(Frozen):
    """The values that the controller chooses among; absent: what the model offers by itself."""

    vision_tokens: tuple[StrictInt | StrictFloat, ...] | None = None
    """Most image tokens per image, each a number, or a share of what the model reads by itself, such as 0.25."""
    moe_topk: tuple[int | tuple[int, ...], ...] | None = None
    """Experts per token: each value one number for all decoder blocks with experts, or a list of one for each."""
    moe_keep_first: bool = False
    """Whether the values of ``moe_topk`` that are offered by default leave the first block with experts as trained."""
    block_skip: tuple[tuple[int, ...], ...] | None = None
    """Sets of decoder blocks to leave out, each a list of block indices."""
    block_order: tuple[int, ...] | None = None
    """Decoder blocks, the least important first: the values of ``block_skip`` that are offered by default leave out the
    first quarter and half of them instead of the central ones."""
    image_keep: tuple[StrictFloat | StrictStr, ...] | None = None
    """What enters the decoder of the image tokens: each value a method and a share or a number of tokens, such as
    "pool:0.25" or "attention:64"."""
    drop_after: tuple[StrictInt | StrictStr, ...] | None = None
    """After how many decoder blocks image tokens leave: each value a number, or that and the share of them that stays,
    such as "8:0.25"."""


class MeasureConfig(Frozen):
    """What is measured and how."""

    latency_metric: LatencyMetric = "prefill_ms"
    """The latency that budgets, rewards and validation compare (docs/definitions.md)."""
    on_unmeasured: Literal["stop", "total", "estimate"] = "total"
    """If the start-up self-check cannot see the stages: end the run, use ``total_ms`` for the whole run, or estimates
    learned from the run ``estimate_from`` for the whole run."""
    estimate_from: str | None = None
    """Directory of a measured run of the same model under the same conditions; read with ``estimate`` only."""
    max_new_tokens: Annotated[int, Field(ge=1)] = DEFAULT_NEW_TOKENS
    """Longest answer."""
    sample: bool = False
    """Sample answers as the model's generation_config says, each draw from a seed of its own that follows from
    ``seed``; off: greedy decoding, whatever the generation_config says. A condition of every number."""
    time_limit_s: Seconds | None = None
    """A generation that takes longer is ended at its next hook or token, and has failed; absent: 30 times what ``full``
    took at the start, but at least 10 s."""
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] = DEFAULT_THREADS
    """Torch threads on the CPU while measuring; a condition of every number."""
    flush_denormals: bool = False
    """Count numbers near 0 as 0 while measuring: can be faster, and can change answers; a condition of every number."""


class RewardConfig(Frozen):
    """Which reward stands for which kind of budget (control/reward.py), and how policies are held to budgets."""

    mean: Literal["lagrange", "overshoot", "mnasnet"] = "lagrange"
    """Reward under a budget that must hold on average."""
    deadline: Literal["lagrange", "overshoot", "mnasnet"] = "overshoot"
    """Reward under a budget that each request must meet."""
    overshoot_penalty: Annotated[float, Field(ge=0)] = 4.0
    """Reward lost per budget of overshoot: 4 means that a request 25 % over its deadline loses 1."""
    mnasnet_exponent: Annotated[float, Field(le=0)] = -0.07
    """Exponent w of ``quality * (latency / budget) ** w``."""
    multiplier_rate: Annotated[float, Field(ge=0)] = 0.03
    """Step size of the Lagrange multipliers, per trial."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Most of each mean budget that is left free; as much as the mean latency is not known, if that is less."""


_OF_REWARDS = ("mean", "deadline", "overshoot_penalty", "mnasnet_exponent")  # the other keys hold any policy to budgets


class RlooConfig(Frozen):
    """The policy gradient (control/learners/rloo.py)."""

    hidden: Annotated[int, Field(ge=1)] = 64
    """Width of the hidden layer."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Step size of Adam."""
    entropy: Annotated[float, Field(ge=0)] = 0.04
    """Weight of the entropy bonus."""
    advantage: Literal["rloo", "grpo", "grpo_nostd"] = "rloo"
    """Baseline: leave-one-out mean, group mean with division by the group's standard deviation, or without."""
    weight_clip: Annotated[float, Field(ge=1)] = 3.0
    """Largest importance weight of a draw that is scored under another budget than its own."""
    updates: Annotated[int, Field(ge=1)] = 2
    """Updates per trial."""
    epochs: Annotated[int, Field(ge=0)] = 4
    """How often all trials are learned from again at the end."""


class DirectConfig(Frozen):
    """The direct learner (control/learners/direct.py)."""

    members: Annotated[int, Field(ge=1)] = 16
    """Draws of what may be true; each draw of the training follows one of them."""


class TrainConfig(Frozen):
    """What is executed to learn from, and how. A slow machine takes longer for it; it learns no less."""

    learner: Literal["rloo", "direct"] = "direct"
    """Which learner (control/learners)."""
    calibration_executions: Annotated[int, Field(ge=8)] = 72
    """Executions of the calibration: ``full`` and five other settings in turn on each sample. Where they are not enough
    for every setting, what the rest takes is forecast."""
    select_executions: Annotated[int, Field(ge=0)] = 306
    """Executions of the selection: the same on samples of the validation split."""
    executions: Annotated[int, Field(ge=1)] = 600
    """Executions of settings that the learner draws; anchors that are due come on top, in the selection as well."""
    seconds: Seconds | None = None
    """End the drawing of the learner after this time if its executions have not ended before."""
    group_size: Annotated[int, Field(ge=2)] = 4
    """Settings drawn per sample, with replacement."""
    unseen: Annotated[int, Field(ge=1)] = 2_000
    """Most samples that are looked at, not executed: to know what prompts differ in and to find prices."""
    anchor_every_s: Seconds = 3.0
    """``full`` is executed as an anchor whenever this much time has passed since the last one."""
    repeats: Annotated[int, Field(ge=1)] = 1
    """How often each drawn setting is executed; the median of its latencies counts."""
    latency: Literal["raw", "drift_corrected"] = "drift_corrected"
    """What latencies are fractions of: ``raw``: ``full`` in the calibration. ``drift_corrected``: that times how the
    anchors say that the machine has drifted since (control/drift.py). Both are recorded."""


class ValidationConfig(Frozen):
    """Judging the frozen controller."""

    mean_budgets: tuple[Fraction, ...] = (0.3, 0.4, 0.5)
    """Budgets on average, as fractions of ``full``."""
    deadlines: tuple[Fraction, ...] = (0.4, 0.6, 0.8)
    """Budgets for 95 % of the requests, as fractions of ``full``."""
    samples: Annotated[int, Field(ge=2)] = 300
    """Test samples to judge on; an interval needs two."""
    seconds: Seconds | None = None
    """Time box of judging; if it ends first, the report says how many samples were judged."""
    beside: tuple[Literal["kind", "vowpalwabbit"], ...] = ()
    """Policies that learn from the same executions and are judged beside the controller: ``kind`` is told the kind of
    each question, ``vowpalwabbit`` is a plain contextual bandit (``pip install 'chronostat[rivals]'``). Each has
    settings of its own to execute on every judged sample."""
    stop: Literal["fixed", "decided"] = "fixed"
    """``fixed``: judge all ``samples``. ``decided``: end as soon as every verdict is known, by intervals that hold
    however often one looks and are wider for it; at most ``samples``."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Differences of accuracy, and of latency as a share, that count as none."""
    aa_every: Annotated[int, Field(ge=0)] = 5
    """``full`` runs twice on every so many judged samples, for the noise floor; 0: never."""

    def budgets(self) -> tuple[Budget, ...]:
        """All budgets to judge, means first."""
        means = [Budget(kind="mean", fraction=fraction) for fraction in self.mean_budgets]
        return (*means, *(Budget(kind="deadline", fraction=fraction) for fraction in self.deadlines))


class Config(Frozen):
    """One run."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything that is drawn."""
    seconds: Seconds | None = None
    """Time box of everything in one process; a resumed run has it anew. Where it is short fewer samples are judged, at
    least 100 of those asked for, and intervals are wider; nothing is learned less."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    knobs: KnobsConfig = KnobsConfig()
    measure: MeasureConfig = MeasureConfig()
    reward: RewardConfig = RewardConfig()
    train: TrainConfig = TrainConfig()
    rloo: RlooConfig = RlooConfig()
    direct: DirectConfig = DirectConfig()
    validation: ValidationConfig = ValidationConfig()

    @model_validator(mode="after")
    def _pair_estimates_with_a_run(self) -> Self:
        """Estimates are learned from something, and nothing else reads a run to learn them from."""
        if (self.measure.on_unmeasured == "estimate") != (self.measure.estimate_from is not None):
            raise ValueError(
                "measure.on_unmeasured = 'estimate' and measure.estimate_from, the directory of a measured run, are "
                "given together or not at all"
            )
        if self.measure.on_unmeasured == "estimate" and self.measure.latency_metric == "request_ms":
            raise ValueError(
                "measure.latency_metric = 'request_ms' holds preprocessing that is measured; it cannot be added to "
                "estimates, choose another latency or measure.on_unmeasured"
            )
        return self

    @model_validator(mode="after")
    def _refuse_deaf_rewards(self) -> Self:
        """The direct learner has no reward: it holds a budget by a price, a deadline by leaving settings out."""
        default = RewardConfig()
        deaf = [name for name in _OF_REWARDS if getattr(self.reward, name) != getattr(default, name)]
        if deaf and self.train.learner == "direct":
            raise ValueError(f"reward.{deaf[0]} is read by train.learner = 'rloo' only, not by 'direct'")
        return self

    @model_validator(mode="after")
    def _refuse_keys_of_the_other_learner(self) -> Self:
        other = "direct" if self.train.learner == "rloo" else "rloo"
        section: BaseModel = getattr(self, other)
        default = type(section)()
        for name in type(section).model_fields:
            if getattr(section, name) != getattr(default, name):
                raise ValueError(
                    f"{other}.{name} is read by train.learner = {other!r} only, not by {self.train.learner!r}"
                )
        return self


def load_config(path: Path | None, overrides: Sequence[str] = (), **top: object) -> Config:
    """Read a TOML file, apply ``section.key=value`` overrides, then the ``top`` keys that are not None.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or a value is not allowed; names key and value.
    """
    raw: dict[str, Any] = _read_toml(path) if path else {}
    for override in overrides:
        _apply_override(raw, override)
    raw.update({key: value for key, value in top.items() if value is not None})
    return _validated(raw)


def overridden(config: Config, overrides: Sequence[str]) -> Config:
    """The same configuration with ``section.key=value`` overrides.

    Raises:
        ConfigError: a key is unknown or a value is not allowed.
    """
    raw = config.model_dump(mode="json")
    for override in overrides:
        _apply_override(raw, override)
    return _validated(raw)


def refuse_others(overrides: Sequence[str], allowed: tuple[str, ...], said: str) -> None:
    """Accept overrides of what a command reads.

    Args:
        overrides: ``section.key=value``.
        allowed: beginnings of their keys.
        said: which are taken, for the message.

    Raises:
        ConfigError: one that the command does not read.
    """
    other = next((override for override in overrides if not override.startswith(allowed)), None)
    if other is not None:
        raise ConfigError(f"--set {other}: {said}")


def _validated(raw: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not (equals and key):
        raise ConfigError(f"--set {override!r}: write section.key=value, for example --set train.seconds=60")
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = raw.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {section!r} is a value, not a section")
        raw = cast("dict[str, Any]", inner)
    raw[last] = _parse_value(text.strip())


def _parse_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: --set train.learner=rloo


def _explain(error: ValidationError) -> str:
    lines: list[str] = []
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}; known keys: {', '.join(_known_keys(problem['loc']))}")
        else:
            lines.append((f"{key} = {problem['input']!r}: " if key else "") + _wanted(problem))
    return "the configuration is not allowed: " + "; ".join(lines)


def _wanted(problem: ErrorDetails) -> str:
    """What is allowed instead, in the words of the file that it is written in."""
    value = problem["input"]
    if problem["type"] == "tuple_type":
        example = f"[{value}]" if isinstance(value, int | float) else '[1, 2] or ["a", "b"]'
        return f"a list is wanted, written {example}"
    if problem["type"] in ("dict_type", "model_type"):
        return "a section of keys is wanted, not one value"
    return problem["msg"].removeprefix("Value error, ")


def _known_keys(location: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        field = next((f for name, f in model.model_fields.items() if part == name), None)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            break
        model = field.annotation
    return sorted(model.model_fields)
