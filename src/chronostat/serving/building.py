"""From what was asked for to a service, its application, and the run that it is stored in."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI
from transformers import PreTrainedConfig

from chronostat.config import Config
from chronostat.control.controller import Controller
from chronostat.control.recalibration import Recalibration
from chronostat.engine.choosing import running_by
from chronostat.errors import MeasurementError
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import SampleRequest, explaining_errors
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.registry import applied
from chronostat.machine.stabilise import stabilised
from chronostat.measure.clock import Clock, clock_for
from chronostat.models.load import Vlm
from chronostat.models.refusals import image_marks
from chronostat.records import BudgetKind, Setting, plain
from chronostat.runs.store import RunStore
from chronostat.runs.store.comparable import CONDITIONS
from chronostat.serving.answering import ModelAnswerer
from chronostat.serving.app import Offer, make_app
from chronostat.serving.choosing import Controlled, Fixed
from chronostat.serving.keys import Keys
from chronostat.serving.line import Line
from chronostat.serving.log import RequestLog
from chronostat.serving.metrics import Gauges, Metrics
from chronostat.serving.renewing import Nothing, Renewing, without_answers
from chronostat.serving.service import Service
from chronostat.version import VERSION
from chronostat.wire.asks import AskedBudget
from chronostat.wire.images import Limits
from chronostat.wire.reading import Terms


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What shall be served, and how.

    Attributes:
        config: of the model and the measuring.
        controller: None: ``setting`` is served alone.
        requests: of the kind to come, for the first calibration of the controller.
        run_dir: where requests are stored.
        command: as it was typed.
        most_waiting: longest line.
        renew_every_s: after which a controller is renewed in a quiet minute.
        keys: that clients need one of; empty: none.
        store_requests: keep messages and answers.
        told: told what a person should know, a line each.
    """

    config: Config
    vlm: Vlm
    controller: Controller | None
    setting: Setting
    requests: Sequence[SampleRequest]
    run_dir: Path
    command: str
    most_waiting: int
    renew_every_s: float
    keys: Sequence[str] = ()
    store_requests: bool = False
    limits: Limits = field(default_factory=Limits)
    told: Callable[[str], None]


class Built(NamedTuple):
    """A server that has not begun."""

    app: FastAPI
    service: Service


def build(wanted: Wanted) -> Built:
    """Put a server together; nothing is executed yet.

    Raises:
        ConfigError: budgets of the controller's metric are none of a caller's wait.
        KnobError: the setting is none of this model.
        StoreError: the run directory cannot be used.
    """
    vlm, config = wanted.vlm, wanted.config
    clock = clock_for(vlm.model.device)
    with applied(wanted.setting, vlm.model, vlm.processor):
        pass  # a knob or value that the model does not have is refused now
    controlled = None if wanted.controller is None else Controlled(wanted.controller, clock)
    answerer = ModelAnswerer(
        vlm=vlm,
        chooser=controlled or Fixed(setting=wanted.setting),
        settings=(wanted.setting,) if controlled is None else controlled.controller.space.settings,
        clock=clock,
        new_tokens=config.measure.max_new_tokens,
        sample=config.measure.sample,
        context_tokens=context_tokens(vlm),
    )
    store = RunStore.create(wanted.run_dir, _metadata(wanted, answerer))
    keeper = Nothing() if controlled is None else _renewing(wanted, controlled, store, clock)
    line = Line(wanted.most_waiting)
    metrics = Metrics(_gauges(line, keeper, controlled))
    service = Service(
        answerer,
        line,
        RequestLog(store.folder),
        count=metrics.count,
        keeper=keeper,
        clock=clock,
        prepared=lambda: _prepared(wanted, answerer, keeper, store, lambda: line.closed),
    )
    answerer.answered = keeper.noted
    terms = Terms(
        limits=wanted.limits,
        marks=image_marks(vlm.processor),
        context_tokens=context_tokens(vlm),
        store_requests=wanted.store_requests,
    )
    name = model_id(vlm)
    created = int(datetime.now(UTC).timestamp())
    card = {"id": name, "object": "model", "created": created, "owned_by": "chronostat"}
    offer = Offer(
        model=name,
        card=lambda: card | {"chronostat": _said(wanted, answerer, keeper, controlled)},
        terms=terms,
        keys=Keys(wanted.keys, turned_away=metrics.count_refused, told=wanted.told),
    )
    return Built(make_app(service, metrics, offer), service)


def model_id(vlm: Vlm) -> str:
    """By which requests name the model: its directory's last name, or its name on the hub."""
    name = vlm.name.removeprefix("bundled ")
    return Path(name).resolve().name if Path(name).exists() else name


def context_tokens(vlm: Vlm) -> int:
    """Tokens that the model's context holds."""
    config: PreTrainedConfig = vlm.model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _renewing(wanted: Wanted, controlled: Controlled, store: RunStore, clock: Clock) -> Renewing:
    measure = wanted.config.measure
    runner = TrialRunner(
        model=wanted.vlm.model,
        processor=wanted.vlm.processor,
        quality=None,
        full=controlled.controller.space.full,
        max_new_tokens=measure.max_new_tokens,
        clock=clock,
        seed=0,
        keep=lambda trial: store.append(trial if wanted.store_requests else without_answers(trial)),
        anchor_every_s=float("inf"),
        time_limit_s=measure.time_limit_s,
        sample=measure.sample,
    )

    def told(renewed: Recalibration | MeasurementError) -> None:
        if isinstance(renewed, MeasurementError):
            wanted.told(f"the controller could not be calibrated and stays as it is: {renewed}")
            return
        full_ms = store.metadata.get("full_ms", {})
        store.update_metadata(full_ms={**full_ms, f"calibration {len(full_ms)}": renewed.full_ms.point})
        store.compact()
        moved = sum(each.moved for each in renewed.settings[1:])
        wanted.told(
            f"calibrated: full takes {renewed.full_ms.point:.1f} ms ({renewed.full_before_ms:.1f} before); {moved} of "
            f"{len(renewed.settings) - 1} settings moved as a fraction of it"
        )

    return Renewing(controlled, runner, wanted.requests, clock=clock, every_s=wanted.renew_every_s, told=told)


@contextmanager
def _prepared(
    wanted: Wanted,
    answerer: ModelAnswerer,
    keeper: Renewing | Nothing,
    store: RunStore,
    ended: Callable[[], bool],
) -> Generator[None]:
    """Threads, denormals and engine as configured, for the thread that enters; the run says the conditions."""
    config, model = wanted.config, wanted.vlm.model
    threads = config.measure.threads if model.device.type == "cpu" else None
    engine = running_by(
        config.model.engine,
        model,
        wanted.vlm.name,
        most_graphs=config.model.most_graphs,
        try_full=lambda: answerer.warm(Setting()),
    )
    with stabilised(threads=threads, flush_denormals=config.measure.flush_denormals), engine as eager_because:
        if eager_because is not None:
            wanted.told(f"the model runs eagerly, not by the engine 'graph': {eager_because}")
        conditions = read_conditions(model, sample=config.measure.sample)
        store.update_metadata(
            conditions=asdict(conditions), **{CONDITIONS: {conditions.fingerprint: asdict(conditions)}}
        )
        with explaining_errors("warming up"):
            answerer.warm_up(ended)
        store.update_metadata(source=answerer.source)
        keeper.under(conditions.fingerprint, answerer.source)
        yield


def _metadata(wanted: Wanted, answerer: ModelAnswerer) -> dict[str, Any]:
    controller = wanted.controller
    model = wanted.vlm.model
    levels: Mapping[str, Any] = {} if controller is None else controller.space.to_json()
    return {
        "version": VERSION,
        "command": wanted.command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": wanted.config.seed,
        "config": wanted.config.model_dump(mode="json"),
        "model": {
            "name": wanted.vlm.name,
            "fingerprint": wanted.vlm.fingerprint,
            "parameters": sum(weight.numel() for weight in model.parameters()),
        },
        "space": levels,
        "metric": answerer.metric,
    }


def _gauges(line: Line, keeper: Renewing | Nothing, controlled: Controlled | None) -> Gauges:
    def calibrated_s() -> float:
        return nan if keeper.calibrated is None else datetime.fromisoformat(keeper.calibrated).timestamp()

    return Gauges(
        waiting=lambda: len(line),
        running=lambda: float(line.running),
        kept_share=lambda: keeper.promises.share.point,
        full_s=lambda: nan if controlled is None else controlled.full_ms / 1e3,
        calibrated_s=calibrated_s,
    )


def _said(
    wanted: Wanted, answerer: ModelAnswerer, keeper: Renewing | Nothing, controlled: Controlled | None
) -> dict[str, Any]:
    """What ``/v1/models`` says beside what every server says."""
    said: dict[str, Any] = {
        "metric": answerer.metric,
        "source": answerer.source,
        "context_tokens": context_tokens(wanted.vlm),
        "max_new_tokens": wanted.config.measure.max_new_tokens,
    }
    if controlled is None:
        return said | {"setting": str(wanted.setting), "controller": False}
    kinds: tuple[BudgetKind, ...] = ("deadline", "mean")
    return said | {
        "controller": True,
        "space": controlled.controller.space.to_json(),
        "full_ms": controlled.controller.full_ms,
        "cheapest_ms": {kind: controlled.cheapest_ms(AskedBudget(ms=1.0, kind=kind)) for kind in kinds},
        "calibrated": keeper.calibrated,
        "pace": plain(asdict(controlled.pace)),
        "deadlines_kept": keeper.promises.said(),
    }
