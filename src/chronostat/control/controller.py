"""The controller that comes out of training: what answers requests within a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, inf, isnan
from numbers import Real
from pathlib import Path
from statistics import fmean

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.control.calibration import calibrate
from chronostat.control.controller_files import ControllerMetadata, read_controller, write_controller
from chronostat.control.learners import learner_by_name
from chronostat.control.learners.base import Learner
from chronostat.control.learners.means_and_tail import TooTightError
from chronostat.control.observation import Observer
from chronostat.data.samples import Sample
from chronostat.errors import BudgetError, ChronostatError, ConfigError, ModelError, StoreError, UnlikeConditions
from chronostat.execution.conditions import as_it_was, read_conditions
from chronostat.execution.execute import Request, SampleRequest, execute
from chronostat.execution.trials import TrialInput, TrialRunner
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.generate import device_of
from chronostat.models.identity import fingerprint, unlike
from chronostat.records import Budget, BudgetKind, Conditions, Execution, LatencyMetric, Setting


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting with what choosing it cost."""

    setting: Setting
    controller_ms: float


@dataclass(frozen=True, kw_only=True)
class Controller:
    """A frozen policy for one model."""

    learner: Learner
    observer: Observer
    metadata: ControllerMetadata

    @cached_property
    def space(self) -> ActionSpace:
        """The settings that it chooses among."""
        return ActionSpace(self.metadata.levels, self.metadata.pruned)

    @property
    def metric(self) -> LatencyMetric:
        """The latency that its budgets limit."""
        return self.metadata.metric

    @property
    def full_ms(self) -> float:
        """Median of that latency at ``full`` when it was calibrated last."""
        return self.metadata.full_ms

    def recalibrated(self, full_ms: float, model: PreTrainedModel) -> "Controller":
        """The same policy on another day or machine: budgets in ms are read against ``full_ms``, measured there.

        Raises:
            UnlikeConditions: ``full`` alone does not tell what the other settings take there; says what to measure.
        """
        differing = self.metadata.conditions.shaping_differences(self._conditions_here(model))
        if differing:
            raise UnlikeConditions(
                f"the controller knows what settings take beside full under other conditions ({'; '.join(differing)}), "
                "and full_ms alone does not renew that; measure every setting here: pass samples to load_controller "
                "instead (docs/controller.md), or train anew here"
            )
        return self._here(full_ms, model)

    def _here(self, full_ms: float, model: PreTrainedModel) -> "Controller":
        now = {
            "full_ms": full_ms,
            "conditions": self._conditions_here(model),
            "model_fingerprint": fingerprint(model),
        }
        return replace(self, metadata=self.metadata.model_copy(update=now))

    def _conditions_here(self, model: PreTrainedModel) -> Conditions:
        return read_conditions(model, sample=self.metadata.config.measure.sample)

    def renewed(
        self, latency_means: Sequence[float], observations: Tensor, full_ms: float, model: PreTrainedModel
    ) -> "Controller":
        """The same policy, held to its budgets by what the settings take now; changes its learner's prices.

        Args:
            latency_means: of all settings with ``controller_ms``, as fractions of ``full``; NaN where not measured.
            observations: unseen requests, shape [N, D].
            full_ms: median of the metric at ``full``, measured with them.
            model: the model it is used with.
        """
        self.learner.settle(observations, torch.tensor(latency_means, dtype=torch.float64))
        return self._here(full_ms, model)

    def without(self, settings: Sequence[Setting]) -> "Controller":
        """The same policy, which never chooses some settings; changes its learner."""
        self.learner.take_out([self.space.index(setting) for setting in settings])
        taken_out = tuple(dict.fromkeys([*self.metadata.taken_out, *map(str, settings)]))
        return replace(self, metadata=self.metadata.model_copy(update={"taken_out": taken_out}))

    def choose(self, request: Request, budget: Budget, clock: Clock) -> Choice:
        """The setting for a request under a budget.

        Raises:
            BudgetError: no setting can meet the budget; names the cheapest in ms and as a fraction of ``full``.
        """
        return self.choose_each(request, [budget], clock)[0]

    def choose_each(self, request: Request, budgets: Sequence[Budget], clock: Clock) -> list[Choice]:
        """The setting for a request under each of some budgets; each choice is charged the one observation.

        Raises:
            BudgetError: no setting can meet one of the budgets.
        """
        start_ns = clock.host_ns()
        observation = self.observer(request)
        observed_ms = clock.host_ms_since(start_ns)
        choices: list[Choice] = []
        for budget in budgets:
            start_ns = clock.host_ns()
            setting = self.space.settings[self._decide(observation, budget)]
            choices.append(Choice(setting=setting, controller_ms=observed_ms + clock.host_ms_since(start_ns)))
        return choices

    def _decide(self, observation: Tensor, budget: Budget) -> int:
        try:
            return self.learner.decide(observation, budget)
        except TooTightError as error:
            cheapest_ms = ceil(error.cheapest * self.full_ms * 10) / 10
            raise BudgetError(
                f"{error} ({cheapest_ms:.1f} ms where full takes {self.full_ms:.1f} ms; "
                f"asked for were {budget.ms(self.full_ms):.1f} ms)"
            ) from None

    def generate(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        image: Image | Sequence[Image],
        prompt: str,
        *,
        budget_ms: float,
        kind: BudgetKind = "mean",
        max_new_tokens: int = 32,
        sampling_seed: int | None = None,
    ) -> Execution:
        """Answer one request within a budget: the answer, the chosen setting and the measured stages.

        Args:
            model: the model it was trained for.
            processor: the model's processor.
            image: one or more RGB images.
            prompt: the user's text.
            budget_ms: limit for ``metric`` plus the controller's own time, in milliseconds.
            kind: ``mean``: on average over requests; ``deadline``: for this request.
            max_new_tokens: longest answer in tokens.
            sampling_seed: draws the tokens of the answer, for a controller that was trained on sampled answers
                (``measure.sample``); None: greedy.

        Raises:
            UnlikeConditions: it was trained on the other kind of answers.
            BudgetError: no setting can meet the budget, names the cheapest in ms; or it is no length of time.
        """
        if not isinstance(budget_ms, Real) or not 0 < budget_ms < inf:
            raise BudgetError(f"budget_ms = {budget_ms!r}: give a number of milliseconds above 0")
        self._require_decoding(sampled=sampling_seed is not None)
        images = [image] if isinstance(image, Image) else list(image)
        sample = Sample(id="request", split="test", prompt=prompt, references=(), load_images=lambda: tuple(images))
        request = SampleRequest(sample=sample, images=images, processor=processor, quality=None)
        clock = clock_for(device_of(model))
        choice = self.choose(request, Budget(kind=kind, fraction=budget_ms / self.full_ms), clock)
        return execute(
            model,
            request,
            setting=choice.setting,
            max_new_tokens=max_new_tokens,
            controller_ms=choice.controller_ms,
            clock=clock,
            sampling_seed=sampling_seed,
        )

    def _require_decoding(self, *, sampled: bool) -> None:
        """Accept answers of the kind that it was trained on: quality and length of the others are not what it knows."""
        if sampled == self.metadata.config.measure.sample:
            return
        if sampled:
            raise UnlikeConditions(
                "sampling_seed was given, but the controller was trained on greedy answers; leave it out, or train one "
                "with measure.sample = true"
            )
        raise UnlikeConditions(
            "the controller was trained on sampled answers (measure.sample = true); give sampling_seed, another whole "
            "number for each request"
        )

    def save(self, folder: str | Path) -> None:
        """Write the directory that ``load_controller`` reads: ``controller.json`` and the policy's tensors.

        The controller that was there before is whole until the new one is.

        Raises:
            StoreError: it cannot be written.
        """
        write_controller(
            Path(folder), self.metadata, observation_size=self.observer.size, policy=self.learner.policy_state()
        )


def load_controller(
    folder: str | Path,
    model: PreTrainedModel,
    processor: ProcessorMixin | None,
    *,
    full_ms: float | None = None,
    samples: Sequence[TrialInput] = (),
) -> Controller:
    """Read a controller for the model it was trained for.

    Args:
        folder: its directory.
        model: the model.
        processor: the model's processor; None for ready batches.
        full_ms: the metric's median at ``full``, measured here and now. Without it, budgets in ms are read against the
            one of the training, so that the conditions have to be those of the training.
        samples: executed here under every setting, some dozens of the kind to come or as many ready batches, where the
            device, dtype, attention ... is another one: there settings relate to ``full`` in another way.

    Raises:
        ConfigError: both ``full_ms`` and ``samples``.
        UnlikeConditions: without either, on another machine, thread count, library version ...; with ``full_ms`` alone,
            on another device, with another dtype or attention ...; names them and what to measure.
        MeasurementError: ``full`` could not be measured on ``samples``.
        StoreError: the directory holds no controller, or a damaged one.
        ModelError: it belongs to another model, or sees requests through another processor.
    """
    if full_ms is not None and samples:
        raise ConfigError("full_ms is measured on the samples that are given; give samples or full_ms, not both")
    saved, tensors = read_controller(Path(folder))
    metadata = saved.controller
    differing = unlike(metadata.model_fingerprint, model)
    if differing is not None:
        raise ModelError(
            f"the controller in {folder} was trained for model {metadata.model} ({metadata.model_fingerprint}), "
            f"not for {fingerprint(model)}: {differing} differ; train one for this model"
        )
    observer = Observer(model, processor)
    if observer.size != saved.observation_size:
        raise ModelError(
            f"the controller in {folder} observes {saved.observation_size} values of a request, this version of "
            f"chronostat {observer.size}; train it anew"
        )
    try:
        learner = _restore(metadata, observer.size, tensors)
    except (ChronostatError, RuntimeError, KeyError) as error:  # unknown learner, or tensors of other names or shapes
        raise StoreError(f"cannot read the controller in {folder}: {error}; train it anew") from error
    controller = Controller(learner=learner, observer=observer, metadata=metadata)
    if samples:
        return _measured_on(controller, model, processor, samples)
    if full_ms is not None:
        return controller.recalibrated(full_ms, model)
    here = read_conditions(model, sample=metadata.config.measure.sample)
    try:
        as_it_was(metadata.conditions, model).require_comparable(here)
    except UnlikeConditions as error:
        every = metadata.conditions.shaping_differences(here)
        what = "every setting here: pass samples" if every else "full here and pass it as full_ms"
        raise UnlikeConditions(
            f"the controller in {folder} counts in milliseconds of other conditions ({error}); set the same ones, or "
            f"measure {what}"
        ) from None
    return controller


def _measured_on(
    controller: Controller, model: PreTrainedModel, processor: ProcessorMixin | None, samples: Sequence[TrialInput]
) -> Controller:
    """The same policy, held to its budgets by what every setting takes here on some samples."""
    space, clock = controller.space, clock_for(device_of(model))
    runner = TrialRunner(
        model=model,
        processor=processor,
        quality=None,
        full=space.full,
        max_new_tokens=controller.metadata.config.measure.max_new_tokens,
        clock=clock,
        seed=controller.metadata.config.seed,
        keep=lambda _: None,
        anchor_every_s=inf,
    )
    runner.run("warmup", 0, runner.request(samples[0]), space.settings)
    took = calibrate(runner, space, samples, controller.metric, inf)
    failed = [setting for setting, share in zip(space.settings, took.fractions, strict=True) if isnan(share)]
    requests = [runner.request(sample) for sample in samples]
    loosest = max(controller.metadata.budgets, key=lambda budget: budget.fraction)
    chosen_ms = fmean(controller.choose(request, loosest, clock).controller_ms for request in requests)
    observations = torch.stack([controller.observer(request) for request in requests])
    charged = replace(took, controller_ms=chosen_ms).charged
    return controller.without(failed).renewed(charged, observations, took.full_ms, model)


def _restore(metadata: ControllerMetadata, observation_size: int, tensors: Mapping[str, Tensor]) -> Learner:
    """The learner, deciding as it did when it was saved.

    Raises:
        ConfigError: there is no such learner.
        RuntimeError: the tensors are not those of this learner; so does KeyError.
    """
    learner = learner_by_name(metadata.learner)(
        space=ActionSpace(metadata.levels, metadata.pruned),
        observation_size=observation_size,
        config=metadata.config,
        seed=metadata.config.seed,
        latency_means=metadata.latency_means,
        budgets=metadata.budgets,
    )
    learner.load_policy_state(tensors)
    return learner
