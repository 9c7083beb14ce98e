"""The controller that comes out of training: a directory, and what answers requests with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.config import Config
from chronostat.control.learners import LEARNERS
from chronostat.control.learners.base import Learner
from chronostat.control.observation import Observer
from chronostat.data.samples import Sample
from chronostat.errors import ModelError, StoreError
from chronostat.execution import Request, SampleRequest, execute
from chronostat.files import read_tensors, write_tensors
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import Clock, clock_for
from chronostat.models.anatomy import anatomy_of
from chronostat.models.load import fingerprint
from chronostat.records import Budget, BudgetKind, Execution, LatencyMetric, Setting

FILE = "controller.safetensors"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting with what choosing it cost."""

    setting: Setting
    controller_ms: float


@dataclass(frozen=True, kw_only=True)
class Controller:
    """A frozen policy for one model.

    Attributes:
        metric: the latency that its budgets limit.
        full_ms: median of that latency at ``full`` when it was calibrated; budgets in ms are read against it.
        facts: where it came from (model fingerprint, learner, conditions, number of trials).
    """

    learner: Learner
    observer: Observer
    space: ActionSpace
    metric: LatencyMetric
    full_ms: float
    facts: Mapping[str, Any]

    def choose(self, request: Request, budget: Budget, clock: Clock) -> Choice:
        """The setting for a request under a budget.

        Raises:
            BudgetError: no setting can meet the budget.
        """
        start_ns = clock.host_ns()
        setting = self.space.settings[self.learner.decide(self.observer(request), budget)]
        return Choice(setting=setting, controller_ms=clock.host_ms_since(start_ns))

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

        Raises:
            BudgetError: no setting can meet the budget.
        """
        images = [image] if isinstance(image, Image) else list(image)
        sample = Sample(id="request", split="test", prompt=prompt, references=(), load_images=lambda: tuple(images))
        request = SampleRequest(sample=sample, images=images, processor=processor, quality=None)
        clock = clock_for(model.device)
        choice = self.choose(request, Budget(kind=kind, fraction=budget_ms / self.full_ms), clock)
        return execute(
            model,
            request,
            setting=choice.setting,
            max_new_tokens=max_new_tokens,
            controller_ms=choice.controller_ms,
            clock=clock,
        )

    def save(self, folder: Path) -> None:
        """Write the directory that ``load_controller`` reads.

        Raises:
            StoreError: it cannot be written.
        """
        data = {
            "space": self.space.to_json(),
            "metric": self.metric,
            "full_ms": self.full_ms,
            "observation_size": self.observer.size,
            "facts": dict(self.facts),
        }
        write_tensors(folder / FILE, self.learner.policy_state(), data)


def load_controller(folder: str | Path, model: PreTrainedModel, processor: ProcessorMixin | None) -> Controller:
    """Read a controller for the model it was trained for.

    Raises:
        StoreError: the directory holds no controller.
        ModelError: it belongs to another model.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise StoreError(f"{folder} holds no controller ({FILE} is missing); name the controller folder of a run")
    tensors, data = read_tensors(path)
    trained_for, given = data["facts"]["model_fingerprint"], fingerprint(model)
    if trained_for != given:
        raise ModelError(f"the controller in {folder} was trained for model {trained_for}, not {given}; train one for it")
    space = ActionSpace.from_json(data["space"])
    observer = Observer(model, processor)
    return Controller(
        learner=_restore(data, tensors, space),
        observer=observer,
        space=space,
        metric=data["metric"],
        full_ms=data["full_ms"],
        facts=data["facts"],
    )
