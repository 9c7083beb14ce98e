"""chronostat knobs, as it is typed."""

from pathlib import Path
from typing import Annotated

import typer

from chronostat.cli.options import Device, Dtype, Engine, Model, Sets, Threads, TrustRemoteCode, finite, model_path
from chronostat.cli.terminal import for_people, out
from chronostat.records.choices import DEFAULT_NEW_TOKENS, DEFAULT_THREADS


def knobs(
    model: Model = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image of the request; repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text of the request.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Most executions of each setting on average.")] = 20,
    seconds: Annotated[
        float | None, typer.Option(min=1, callback=finite, help="Time for judging, if it ends before.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of every answer in tokens.")] = DEFAULT_NEW_TOKENS,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "eager",
    threads: Threads = DEFAULT_THREADS,
    trust_remote_code: TrustRemoteCode = False,
    ranking: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Leave blocks out by importance: what rank-blocks stored.")
    ] = None,
    overrides: Sets = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write counts and ratios.")] = None,
) -> None:
    """The knobs of a model: values, mechanism, the work that each value takes away and the time that it saves."""
    with for_people():
        from chronostat.cli.actions import knobs as action
        from chronostat.cli.output import require_writable
        from chronostat.config import MeasureConfig, ModelConfig, load_config, refuse_others

        require_writable({"--json": json_file})
        said = "knobs takes keys of knobs and model.layout, and of model.template, and seed; others are flags"
        refuse_others(overrides or (), ("knobs.", "model.layout.", "model.template.", "seed="), said)
        config = load_config(None, overrides or ())
        own = ModelConfig(
            path=model_path(model), device=device, dtype=dtype, engine=engine, trust_remote_code=trust_remote_code
        )
        config = config.model_copy(
            update={
                "model": own.model_copy(update={"layout": config.model.layout, "template": config.model.template}),
                "measure": MeasureConfig(threads=threads, max_new_tokens=new_tokens),
            }
        )
        action.knobs(
            config,
            image or (),
            prompt,
            repeats=repeats,
            seconds=seconds,
            ranking=ranking,
            json_file=json_file,
            out=out,
        )
