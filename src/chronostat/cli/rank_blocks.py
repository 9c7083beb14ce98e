"""chronostat rank-blocks, as it is typed."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from chronostat.cli.options import (
    Model,
    RunDir,
    Sample,
    Seed,
    Sets,
    command_line,
    finite,
    model_path,
    new_folder,
    with_sampling,
)
from chronostat.cli.terminal import for_people, out
from chronostat.errors import ConfigError

RANKED_SAMPLES, RANKING_SECONDS = 100, 300.0


def rank_blocks(
    model: Model = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Own samples; absent: the bundled task. Of a resumed ranking: where they are now."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Most validation samples in each round; 100 if absent.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, callback=finite, help="Time of all executions together; 300 if absent.")
    ] = None,
    method: Annotated[
        Literal["one-at-a-time", "greedy"] | None,
        typer.Option(help="Each block alone (if absent), or one more for good in each round."),
    ] = None,
    keep: Annotated[
        list[int] | None, typer.Option(min=1, help="Measure what this many blocks can do in the end; repeatable.")
    ] = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    sample: Sample = False,
    overrides: Sets = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue a ranking that was ended or killed.")
    ] = None,
) -> None:
    """Order the decoder blocks by the loss of quality for each millisecond that leaving them out saves."""
    folder = resume or run_dir or new_folder("rank-blocks")
    with for_people(folder, resume_with="rank-blocks"):
        others = (model, samples, seconds, method, keep, run_dir, seed, overrides)
        if resume and (sample or any(value is not None for value in others)):
            raise ConfigError("--resume continues a ranking as it was begun; give no other option with it but --data")
        from chronostat.cli.actions import rank_blocks as action
        from chronostat.config import load_config, refuse_others

        if resume:
            action.resume_ranking(folder, data, out)
            return
        said = "rank-blocks takes keys of model, data and measure, and seed; its values of block_skip are its own"
        refuse_others(overrides or (), ("model.", "data.", "measure.", "seed="), said)
        given = {"model.path": model_path(model), "data.path": data}
        paths = [f"{key}={json.dumps(str(path))}" for key, path in given.items() if path is not None]
        config = load_config(None, [*paths, *with_sampling(overrides, sample=sample)], seed=seed)
        plan = action.Plan(
            method=method or "one-at-a-time",
            samples=samples or RANKED_SAMPLES,
            seconds=seconds or RANKING_SECONDS,
            keep=tuple(sorted(set(keep or ()), reverse=True)),
            seed=config.seed,
        )
        action.rank_blocks(config, plan, folder, command_line(), out)
