"""The controller that comes out of training: what answers requests within a budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from numbers import Real
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL.Image import Image
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.control.controller_files import ControllerMetadata, read_controller, write_controller
from chronostat.control.observer import Observer
from chronostat.data.samples import Sample
from chronostat.errors import BudgetError, ChronostatError, ModelError, StoreError, UnlikeConditions
from chronostat.execution.conditions import as_it_was, read_conditions
from chronostat.execution.execute import Request, SampleRequest, execute
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.generate import device_of
from chronostat.models.identity import fingerprint, unlike
from chronostat.policy.policy import Policy, TooTightError
from chronostat.records import Budget, BudgetKind, Execution, LatencyMetric, Setting

_COIN = np.random.default_rng()  # which side of a mean budget a request falls is nobody's to foresee


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting with what choosing it cost."""

    setting: Setting
    controller_ms: float


@dataclass(frozen=True, kw_only=True)
class Controller:
    """A frozen policy for one model."""

    policy: Policy
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

    def choose(self, request: Request, budget: Budget, clock: Clock, coin: float) -> Choice:
        """The setting for a request under a budget.

        Args:
            request: what shall be executed.
            budget: of either kind.
            clock: times the choosing.
            coin: uniform in [0, 1): which of two neighbouring prices this request pays, so that a mean budget is spent.

        Raises:
            BudgetError: no setting can meet the budget; names the cheapest in ms and as a fraction of ``full``.
        """
        return self.choose_each(request, [budget], clock, coin)[0]

    def choose_each(self, request: Request, budgets: Sequence[Budget], clock: Clock, coin: float) -> list[Choice]:
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
            try:
                setting = self.space.settings[self.policy.decide(observation, budget, coin)]
            except TooTightError as error:
                raise self._in_ms(error, budget) from None
            choices.append(Choice(setting=setting, controller_ms=observed_ms + clock.host_ms_since(start_ns)))
        return choices

    def _in_ms(self, error: TooTightError, budget: Budget) -> BudgetError:
        cheapest_ms = ceil(error.cheapest * self.full_ms * 10) / 10
        return BudgetError(
            f"{error} ({cheapest_ms:.1f} ms where full takes {self.full_ms:.1f} ms; "
            f"asked for were {budget.ms(self.full_ms):.1f} ms)"
        )

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
        budget = Budget(kind=kind, fraction=budget_ms / self.full_ms)
        choice = self.choose(request, budget, clock, float(_COIN.random()))
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
        write_controller(Path(folder), self.metadata, prompt_width=self.observer.width, policy=self.policy.state())


def choosing_ms(controller: Controller, requests: Sequence[Request], clock: Clock) -> float:
    """What the controller's look and choice take on average; nothing is executed, and the first one is not counted."""
    budget = Budget(kind="mean", fraction=max(1.0, controller.policy.cheapest("mean")))
    took_ms = [controller.choose(request, budget, clock, 0.5).controller_ms for request in requests]
    return fmean(took_ms[1:] or took_ms)  # the first one pays for what later ones find ready


def load_controller(folder: str | Path, model: PreTrainedModel, processor: ProcessorMixin | None) -> Controller:
    """Read a controller for the model it was trained for, where it was calibrated.

    Args:
        folder: its directory.
        model: the model.
        processor: the model's processor; None for ready batches.

    Raises:
        UnlikeConditions: on another machine, thread count, library version, with another dtype ...; names them and what
            to do.
        StoreError: the directory holds no controller, or a damaged one.
        ModelError: it belongs to another model, or sees requests through another processor.
    """
    controller = read_for(folder, model, processor)
    conditions = controller.metadata.conditions
    here = read_conditions(model, sample=controller.metadata.config.measure.sample)
    try:
        as_it_was(conditions, model).require_comparable(here)
    except UnlikeConditions as error:
        raise UnlikeConditions(
            f"the controller in {folder} knows what settings take under other conditions ({error}); set the same ones, "
            f"or renew it here with: chronostat calibrate {folder}"
        ) from None
    return controller


def read_for(folder: str | Path, model: PreTrainedModel, processor: ProcessorMixin | None) -> Controller:
    """A controller for its model, whatever the conditions are here.

    Raises:
        StoreError, ModelError: as ``load_controller``.
    """
    saved, arrays = read_controller(Path(folder))
    metadata = saved.controller
    differing = unlike(metadata.model_fingerprint, model)
    if differing is not None:
        raise ModelError(
            f"the controller in {folder} was trained for model {metadata.model} ({metadata.model_fingerprint}), "
            f"not for {fingerprint(model)}: {differing} differ; train one for this model"
        )
    observer = Observer(model, processor, ActionSpace(metadata.levels, metadata.pruned))
    if observer.width != saved.prompt_width:
        raise ModelError(
            f"the controller in {folder} reads embeddings of {saved.prompt_width} values, this model has "
            f"{observer.width}; train it anew"
        )
    try:
        policy = Policy.restored(metadata.learner, arrays)
    except (ChronostatError, ValueError, KeyError, TypeError) as error:  # unknown learner, arrays of other names
        raise StoreError(f"cannot read the controller in {folder}: {error}; train it anew") from error
    return Controller(policy=policy, observer=observer, metadata=metadata)
