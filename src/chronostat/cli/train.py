"""chronostat train, as it is typed."""

from pathlib import Path
from typing import Annotated

import typer

from chronostat.cli.options import MovedData, RunDir, Sample, Seed, Sets, command_line, new_folder, with_sampling
from chronostat.cli.terminal import for_people, out
from chronostat.errors import ConfigError


def train(
    config_file: Annotated[Path | None, typer.Argument(metavar="CONFIG.toml", help="Absent: all defaults.")] = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    sample: Sample = False,
    overrides: Sets = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue a run that was ended or killed.")] = None,
    data: MovedData = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many executions it takes and how long, then stop.")
    ] = False,
) -> None:
    """Train a controller on measured latency; afterwards: chronostat validate RUN."""
    folder = resume or run_dir or new_folder("train")
    with for_people(folder, resume_with="train"):
        if resume and (config_file or run_dir or seed is not None or sample or overrides or dry_run):
            raise ConfigError("--resume continues a run with its own configuration; give no other option with it")
        from chronostat.config import load_config

        if data and not resume:
            raise ConfigError(f"--data {data} says where the data of a resumed run is now; name data with data.path")
        config = None if resume else load_config(config_file, with_sampling(overrides, sample=sample), seed=seed)
        from chronostat.cli.actions import train as action

        if config is None:
            action.resume(folder, data, out)
        elif dry_run:
            action.forecast(config, out)
        else:
            action.train(config, folder, command_line(), out)
