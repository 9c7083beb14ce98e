"""The command line: parses first, imports torch afterwards, so that ``--help`` and mistakes answer at once."""

import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from chronostat.errors import ChronostatError, ConfigError
from chronostat.version import VERSION

INTERRUPTED = 130  # as a shell reports SIGINT
DEMO_SECONDS = 450.0  # with loading and the report the main job stays below 8 minutes

app = typer.Typer(
    name="chronostat",
    help="Measure a vision-language model inside generate(), and teach a controller to keep a latency budget.",
    epilog="Start with: chronostat demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# no markup: paths and answers may hold square brackets
out = Console(highlight=False, soft_wrap=True, markup=False)
problems = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

RunDir = Annotated[Path | None, typer.Option(help="Where the run is stored; runs/<verb>-<time> if absent.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable. [train.seconds=60]"),
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")]


def main() -> None:
    """Run one verb and end the process with its exit status."""
    app()


@contextmanager
def _for_people(run_dir: Path | None = None, *, resumable: bool = False) -> Generator[None]:
    """Turn errors into one message and an exit status; what was stored before stays readable."""
    try:
        yield
    except ChronostatError as error:
        problems.print(f"chronostat: {error}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        kept = f"; what was measured is in {run_dir}" if run_dir and run_dir.is_dir() else ""
        kept += f", continue with: chronostat train --resume {run_dir}" if kept and resumable else ""
        problems.print(f"chronostat: interrupted{kept}")
        raise typer.Exit(INTERRUPTED) from None


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(VERSION)
        raise typer.Exit


@app.command()
def demo(run_dir: RunDir = None, seed: Seed = None, overrides: Sets = None) -> None:
    """The main job on the bundled model: calibrate, train, validate, write the report. Takes at most 8 minutes."""
    folder = run_dir or _new_folder("demo")
    with _for_people(folder):
        from chronostat.config import load_config

        config = load_config(None, [f"seconds={DEMO_SECONDS}", *(overrides or ())], seed=seed)
        if config.model.path or config.data.path:
            raise ConfigError("demo runs the bundled model on its own task; for yours: chronostat train CONFIG.toml")
        from chronostat.verbs import loop

        loop.demo(config, folder, _command(), out)


@app.command()
def train(
    config_file: Annotated[Path | None, typer.Argument(metavar="CONFIG.toml", help="Absent: all defaults.")] = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    overrides: Sets = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue a run that was ended or killed.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Say how many executions it takes and how long, then stop.")] = False,
) -> None:
    """Train a controller on measured latency; afterwards: chronostat validate RUN."""
    folder = resume or run_dir or _new_folder("train")
    with _for_people(folder, resumable=True):
        if resume and (config_file or run_dir or seed is not None or overrides or dry_run):
            raise ConfigError("--resume continues a run with its own configuration; give no other option with it")
        from chronostat.config import load_config

        config = None if resume else load_config(config_file, overrides or (), seed=seed)
        from chronostat.verbs import loop

        if config is None:
            loop.resume(folder, out)
        elif dry_run:
            loop.forecast(config, out)
        else:
            loop.train(config, folder, _command(), out)


@app.command()
def validate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a training run.")],
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Store the verdict as a run of its own.")] = None,
    overrides: Sets = None,
) -> None:
    """Judge the controller of a run once on unseen samples, measured afresh beside fixed settings."""
    with _for_people(to or run):
        from chronostat.verbs import loop

        loop.validate(run, to, overrides or (), _command(), out)


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]) -> None:
    """Write RUN/report.html, one page that needs no network, and RUN/report.svg once there is a verdict."""
    with _for_people(run):
        from chronostat.verbs import loop

        loop.report(run, out)


@app.command()
def measure(
    model: Annotated[str | None, typer.Argument(help="Model directory or name; absent: the bundled model.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image of the request; repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text of the request.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="'KNOB=VALUE ...'", help="Measure under this setting; repeatable. Absent: full."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured executions of each setting.")] = 10,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 8,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Type of the weights.")
    ] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Torch threads on the CPU.")] = 1,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the checkpoint.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every repeat.")] = None,
) -> None:
    """The stages of one request, measured inside generate(); several settings are interleaved."""
    with _for_people():
        from chronostat.config import Config, MeasureConfig, ModelConfig
        from chronostat.verbs import measuring

        config = Config(
            model=ModelConfig(path=model, device=device, dtype=dtype, trust_remote_code=trust_remote_code),
            measure=MeasureConfig(threads=threads, max_new_tokens=new_tokens),
        )
        measuring.measure(config, image or (), prompt, setting or ("full",), repeats, json_file, out)


def _new_folder(verb: str) -> Path:
    return Path("runs") / f"{verb}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _command() -> str:
    return shlex.join(["chronostat", *sys.argv[1:]])
