"""What chronostat ask does: one request answered, after others have paid for what first ones pay for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from chronostat.cli.actions.held import config_with
from chronostat.cli.actions.requests import one_request
from chronostat.config import Config
from chronostat.control.controller import Controller, load_controller
from chronostat.execution.execute import SampleRequest, execute, explaining_errors
from chronostat.machine.stabilise import stabilised
from chronostat.measure.flow import parts_followed
from chronostat.models.load import Vlm
from chronostat.records import Execution, Setting
from chronostat.runs.workload import load_model

_ANSWERS = 3  # of which the last one counts
_STAGES = ("vision_ms", "projector_ms", "llm_prefill_ms", "prefill_rest_ms", "decode_ms", "other_ms", "total_ms")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of the command."""

    controller: Path | None
    model: str | None
    images: Sequence[Path]
    prompt: str | None
    budget_ms: float | None
    overrides: Sequence[str]


def ask(asked: Asked, out: Console) -> None:
    """Answer, and say what was chosen and what it took.

    Raises:
        ConfigError: half a request, or a key that is not read.
        UnlikeConditions: the controller was calibrated elsewhere.
        BudgetError: no setting can meet the budget.
    """
    config = config_with(asked.controller, asked.model, asked.overrides)
    vlm = load_model(config)
    own = config.model.path is not None
    request = one_request(vlm, asked.images, asked.prompt, own_model=own)
    threads = config.measure.threads if vlm.model.device.type == "cpu" else None
    with stabilised(threads=threads, flush_denormals=config.measure.flush_denormals):
        controller = None if asked.controller is None else load_controller(asked.controller, vlm.model, vlm.processor)
        with parts_followed(vlm.model), explaining_errors("the first answer"):
            _full(vlm, config, request)
        *_, execution = [_answered(vlm, config, controller, request, asked.budget_ms) for _ in range(_ANSWERS)]
    for line in _said(execution, controller, asked.budget_ms):
        out.print(line)


def _answered(
    vlm: Vlm, config: Config, controller: Controller | None, request: SampleRequest, budget_ms: float | None
) -> Execution:
    if controller is None or budget_ms is None:
        return _full(vlm, config, request)
    return controller.generate(
        vlm.model,
        vlm.processor,
        request.images,
        request.sample.prompt,
        budget_ms=budget_ms,
        kind="deadline",
        max_new_tokens=config.measure.max_new_tokens,
    )


def _full(vlm: Vlm, config: Config, request: SampleRequest) -> Execution:
    return execute(vlm.model, request, setting=Setting(), max_new_tokens=config.measure.max_new_tokens)


def _said(execution: Execution, controller: Controller | None, budget_ms: float | None) -> Iterator[str]:
    timing = execution.timing
    assert timing is not None, "execute() raises where it cannot measure"
    yield f"answer: {execution.answer}"
    yield f"setting: {execution.setting}"
    if controller is not None and budget_ms is not None:
        charged_ms = execution.charged_ms(controller.metric)
        kept = "kept" if charged_ms <= budget_ms else "NOT kept"
        yield (
            f"{controller.metric}, the controller's own time in it: {charged_ms:.1f} ms of {budget_ms:g} ms, {kept}; "
            f"full takes {controller.full_ms:.1f} ms"
        )
    stages = {"preprocess_ms": execution.preprocess_ms, "controller_ms": execution.controller_ms}
    stages |= {name: getattr(timing, name) for name in _STAGES}
    yield ", ".join(f"{name} {ms:.1f}" for name, ms in stages.items() if ms is not None)
    yield f"{timing.new_tokens} tokens; source: {timing.source}{f' ({timing.unseen})' if timing.unseen else ''}"
    if execution.disturbed is not None:
        yield f"disturbed: {execution.disturbed}"
