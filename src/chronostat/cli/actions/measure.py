"""What chronostat measure does: the stages of requests, under one or several models and settings."""

import json
import tomllib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from chronostat.cli.actions.requests import image_sample, images_in, one_sample
from chronostat.cli.console import survey_tables
from chronostat.cli.interrupt import first_interrupt_ends_measuring
from chronostat.cli.output import write_json, write_text
from chronostat.config import Config
from chronostat.data.demo import DemoTask
from chronostat.data.quality import quality_by_name
from chronostat.data.samples import Sample
from chronostat.engine.choosing import running_by
from chronostat.errors import ConfigError
from chronostat.execution.execute import SampleRequest, execute, explaining_errors
from chronostat.measure.decoding import decoding_of
from chronostat.models.load import Vlm
from chronostat.records import Setting
from chronostat.report.survey import condition_rows, judged, notes, survey_page
from chronostat.runs.workload import load_model
from chronostat.studies.survey import Arm, Plan, Requests, Survey, survey

ONE_ARM, COMPARED, MANY_REQUESTS = 10, 20, 1  # repeats, where the user names none
MOST_REQUESTS = 20


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the user wants measured.

    Attributes:
        models: a configuration for each model, the first the one that others are compared with.
        images: of the one request.
        folder: of images, each a request.
        task: a task by name, each sample a request.
        requests: most of them; None: 20.
        repeats: None: as many as suit.
        command: as it was typed.
    """

    models: Sequence[Config]
    settings: Sequence[str]
    images: Sequence[Path] = ()
    folder: Path | None = None
    prompt: str | None = None
    task: str | None = None
    requests: int | None = None
    repeats: int | None = None
    exact_tokens: bool = False
    json_file: Path | None = None
    html_file: Path | None = None
    command: str = "chronostat measure"


def measure(ask: Ask, out: Console) -> None:
    """Measure, and show: a table, verdicts between arms, conditions, and what a reader has to know.

    Raises:
        KeyboardInterrupt: measuring was interrupted; what there is has been shown and written.
    """
    settings = _settings(ask.settings)
    samples = _samples(ask, out)
    vlms = [load_model(config) for config in ask.models]
    quality = None if ask.exact_tokens else quality_by_name("exact")  # an answer made too long is never right
    every = [Requests(vlm=vlm, samples=samples, quality=quality) for vlm in vlms]
    for requests in every:
        requests.check()
    arms = [
        Arm(name=name, vlm=requests.vlm, setting=setting, requests=requests)
        for requests in every
        for setting in settings
        for name in [_name(requests.vlm, setting, models=len(vlms), settings=len(settings))]
    ]
    few = COMPARED if len(arms) > 1 else ONE_ARM
    plan = Plan(
        repeats=ask.repeats or (MANY_REQUESTS if len(samples) > 1 else few),
        max_new_tokens=ask.models[0].measure.max_new_tokens,
        exact_tokens=ask.exact_tokens,
        seed=ask.models[0].seed,
        sample=ask.models[0].measure.sample,
    )
    for note in decoding_notes(vlms, sample=plan.sample):
        out.print(note)
    with ExitStack() as engines, out.status("measuring") as status, first_interrupt_ends_measuring() as stopped:
        for config, vlm in zip(ask.models, vlms, strict=True):
            engines.enter_context(by_engine(config, vlm, next(a for a in arms if a.vlm is vlm).requests[0], out))

        def advance(share: float, note: str) -> None:
            status.update(f"measuring: {100 * share:.0f} %, {note}")

        found = survey(arms, plan, advance=advance, stopped=stopped)
    try:
        written = _write(found, ask)
    finally:  # the tables last: they may go to a program that reads only their first lines
        _show(found, out)
    for line in written:
        out.print(line)
    if found.interrupted:
        raise KeyboardInterrupt


def decoding_notes(vlms: Sequence[Vlm], *, sample: bool = False) -> Iterator[str]:
    """What is not done as the checkpoint of a model asks."""
    for vlm in vlms:
        note = decoding_of(vlm.model, sample=sample).note
        if note is not None:
            yield note if len(vlms) == 1 else f"{vlm.name}: {note}"


@contextmanager
def by_engine(config: Config, vlm: Vlm, request: SampleRequest, out: Console) -> Generator[None]:
    """The model runs by the engine of the configuration; where ``auto`` comes to eager, it is said why.

    Raises:
        ModelError: it cannot run by it.
        MeasurementError: the execution that tries it failed.
    """

    def try_full() -> None:
        with explaining_errors(f"{vlm.name}: the execution that tries the engine"):
            execute(vlm.model, request, setting=Setting(), max_new_tokens=2)

    wanted = config.model
    graphs, told = wanted.most_graphs, out.print
    running = running_by(wanted.engine, vlm.model, vlm.name, most_graphs=graphs, try_full=try_full, told=told)
    with running as eager_because:
        if eager_because is not None:
            out.print(f"{vlm.name} runs eagerly, not by the engine 'graph': {eager_because}")
        yield


def _settings(texts: Sequence[str]) -> list[Setting]:
    settings = [Setting.parse(text) for text in texts]
    for text, setting in zip(texts, settings, strict=True):
        if settings.count(setting) > 1:
            raise ConfigError(
                f"--setting {text!r} is given twice; give each once (chronostat doctor compares a setting with itself)"
            )
    return settings


def read_layout(file: Path) -> dict[str, str | tuple[str, ...]]:
    """The parts of a model by name of the part, from a JSON or TOML file.

    Raises:
        ConfigError: it cannot be read, is neither, or is not one table of paths.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--layout {file}: cannot be read ({error}); name a JSON or TOML file") from None
    table = _parsed(text)
    wanted = 'a table such as {"vision": "model.visual", "blocks": "model.layers"}'
    if table is None:
        raise ConfigError(f"--layout {file} is neither JSON nor TOML; it holds {wanted}")
    if not isinstance(table, Mapping):
        raise ConfigError(f"--layout {file} holds a {type(table).__name__}; it must hold {wanted}")
    layout: dict[str, str | tuple[str, ...]] = {}
    for part, value in cast("Mapping[str, object]", table).items():
        paths = cast("list[object]", value) if isinstance(value, list) else [value]
        if not all(isinstance(path, str) for path in paths):
            raise ConfigError(f"--layout {file}: {part} = {value!r}; allowed are a module path or a list of them")
        layout[part] = value if isinstance(value, str) else tuple(map(str, paths))
    return layout


def _parsed(text: str) -> Any:  # noqa: ANN401 - any JSON value; None: neither language
    readers: tuple[Callable[[str], Any], ...] = (json.loads, tomllib.loads)
    for read in readers:
        try:
            return read(text)
        except ValueError:
            continue
    return None


def _samples(ask: Ask, out: Console) -> list[Sample]:
    """What is asked, without the processors of the models; says what is left out."""
    ways = [flag for flag, given in (("--image", ask.images), ("--images", ask.folder), ("--task", ask.task)) if given]
    if len(ways) > 1:
        raise ConfigError(f"{' and '.join(ways)} each say what the requests are; give one of them")
    if ask.requests is not None and ask.task is None and ask.folder is None:
        raise ConfigError(f"--requests {ask.requests} says how many of --images or --task; give one of them with it")
    most = ask.requests or MOST_REQUESTS
    if ask.task is not None:
        if ask.prompt:
            raise ConfigError("--task brings its own prompts; leave --prompt out")
        return list(DemoTask().split("validation")[:most])
    if ask.folder is not None:
        if not ask.prompt:
            raise ConfigError("--images DIR needs --prompt TEXT, which is asked of each image")
        folder = images_in(ask.folder)
        for told in folder.told(most):
            out.print(told)
        return [image_sample(file.name, ask.prompt, [file]) for file in folder.images[:most]]
    own = any(config.model.path is not None for config in ask.models)
    if own and not (ask.images and ask.prompt):
        raise ConfigError(
            "an own model needs requests: give --image FILE and --prompt TEXT, or --images DIR and --prompt TEXT, or "
            "--task bundled"
        )
    return [one_sample(ask.images, ask.prompt, own_model=own)]


def _name(vlm: Vlm, setting: Setting, *, models: int, settings: int) -> str:
    if models == 1:
        return str(setting)
    return vlm.name if settings == 1 and not setting else f"{vlm.name}: {setting}"


def _write(found: Survey, ask: Ask) -> list[str]:
    written: list[str] = []
    if ask.json_file is not None:
        write_json(ask.json_file, found.to_json())
        written.append(f"every execution: {ask.json_file}")
    if ask.html_file is not None:
        write_text(ask.html_file, survey_page(found, ask.command), flag="--html")
        written.append(f"page with waterfall: {ask.html_file}")
    return written


def _show(found: Survey, out: Console) -> None:
    for table in survey_tables(found, out.width):
        out.print(table)
    out.print("; ".join(f"{name.replace('_', ' ')} {' / '.join(cells)}" for name, cells in condition_rows(found)))
    for note in filter(None, (*notes(found), judged(found))):
        out.print(note)
