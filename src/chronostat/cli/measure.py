"""chronostat measure, as it is typed."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from chronostat.cli.options import (
    Device,
    Dtype,
    Engine,
    Layout,
    Sample,
    Seed,
    Template,
    Threads,
    TrustRemoteCode,
    command_line,
    model_path,
)
from chronostat.cli.terminal import for_people, out
from chronostat.errors import ConfigError
from chronostat.records.choices import DEFAULT_NEW_TOKENS, DEFAULT_THREADS, Attention


def measure(
    model: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Directories or names; several are compared. None: the bundled model."),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image of the one request; repeatable.")] = None,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Each image in here is a request.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text of the request, or of each image's.")] = None,
    task: Annotated[Literal["bundled"] | None, typer.Option(help="Each sample of this task is a request.")] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Most requests of --images or --task; 20 if absent.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="'KNOB=VALUE ...'", help="Measure under this setting; repeatable. Absent: full."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Executions of each request and setting: 10 if absent, 1 if there are several requests; if several "
            "settings or models are compared on one request the most on average, 20 if absent.",
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = DEFAULT_NEW_TOKENS,
    exact_tokens: Annotated[
        bool, typer.Option("--exact-tokens", help="Make every answer that long, also past its end.")
    ] = False,
    sample: Sample = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Annotated[
        Attention,
        typer.Option(
            metavar="NAME",
            help="auto (as transformers chooses), eager, sdpa, flash_attention_2, flash_attention_3 or flex_attention.",
        ),
    ] = "auto",
    engine: Engine = "eager",
    threads: Threads = DEFAULT_THREADS,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    layout: Layout = None,
    template: Template = None,
    seed: Seed = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every execution.")] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with a waterfall of one request.")
    ] = None,
) -> None:
    """The stages of requests, measured inside generate(); several settings or models are compared, interleaved."""
    with for_people():
        if layout and len(model or ()) > 1:
            raise ConfigError("--layout names the parts of one model; measure one, or leave it out")
        from chronostat.cli.actions import measure as action
        from chronostat.cli.output import require_writable
        from chronostat.config import Config, MeasureConfig, ModelConfig, load_config

        require_writable({"--json": json_file, "--html": html_file})
        told = load_config(None, [f"model.template.{each}" for each in template or ()]).model.template
        own = ModelConfig(
            device=device,
            dtype=dtype,
            attention=attention,
            engine=engine,
            revision=revision,
            trust_remote_code=trust_remote_code,
            layout=action.read_layout(layout) if layout else {},
            template=told,
        )
        paths = [model_path(name) for name in model or ("bundled",)]
        measured = MeasureConfig(threads=threads, max_new_tokens=new_tokens, sample=sample)
        config = Config(measure=measured, seed=seed or 0)
        action.measure(
            action.Ask(
                models=[config.model_copy(update={"model": own.model_copy(update={"path": path})}) for path in paths],
                settings=setting or ("full",),
                images=image or (),
                folder=images,
                prompt=prompt,
                task=task,
                requests=requests,
                repeats=repeats,
                exact_tokens=exact_tokens,
                json_file=json_file,
                html_file=html_file,
                command=command_line(),
            ),
            out,
        )
