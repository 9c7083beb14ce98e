"""The command line: parses first, imports torch afterwards, so that ``--help`` and mistakes answer at once."""

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from chronostat.config import Attention, Config, MeasureConfig, ModelConfig, load_config, refuse_others
from chronostat.errors import ConfigError
from chronostat.options import (
    Device,
    Dtype,
    Engine,
    Layout,
    Model,
    RunDir,
    Sample,
    Seed,
    Sets,
    Threads,
    TrustRemoteCode,
    finite,
)
from chronostat.terminal import for_people, out
from chronostat.version import VERSION

RANKED_SAMPLES, RANKING_SECONDS = 100, 300.0
DEFAULTS = MeasureConfig()
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


def main() -> None:
    """Run one verb and end the process with its exit status."""
    app()


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(VERSION)
        raise typer.Exit


@app.command()
def demo(run_dir: RunDir = None, seed: Seed = None, overrides: Sets = None) -> None:
    """The main job on the bundled model: calibrate, train, validate, write the report. Takes at most 8 minutes."""
    folder = run_dir or _new_folder("demo")
    with for_people(folder):
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
    sample: Sample = False,
    overrides: Sets = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue a run that was ended or killed.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many executions it takes and how long, then stop.")
    ] = False,
) -> None:
    """Train a controller on measured latency; afterwards: chronostat validate RUN."""
    folder = resume or run_dir or _new_folder("train")
    with for_people(folder, resume_with="train"):
        if resume and (config_file or run_dir or seed is not None or sample or overrides or dry_run):
            raise ConfigError("--resume continues a run with its own configuration; give no other option with it")
        config = None if resume else load_config(config_file, _sampling(overrides, sample=sample), seed=seed)
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
    with for_people(to or run):
        from chronostat.verbs import loop

        loop.validate(run, to, overrides or (), _command(), out)


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]) -> None:
    """Write RUN/report.html, one page that needs no network, and RUN/report.svg once there is a verdict."""
    with for_people(run):
        from chronostat.verbs import loop

        loop.report(run, out)


@app.command()
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
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = DEFAULTS.max_new_tokens,
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
    threads: Threads = DEFAULTS.threads,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    layout: Layout = None,
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
        from chronostat.verbs import measuring
        from chronostat.verbs.output import require_writable

        require_writable({"--json": json_file, "--html": html_file})
        own = ModelConfig(
            device=device,
            dtype=dtype,
            attention=attention,
            engine=engine,
            revision=revision,
            trust_remote_code=trust_remote_code,
            layout=measuring.read_layout(layout) if layout else {},
        )
        paths = [_path(name) for name in model or ("bundled",)]
        measured = MeasureConfig(threads=threads, max_new_tokens=new_tokens, sample=sample)
        config = Config(measure=measured, seed=seed or 0)
        measuring.measure(
            measuring.Ask(
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
                command=_command(),
            ),
            out,
        )


@app.command()
def knobs(
    model: Model = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image of the request; repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text of the request.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Most executions of each setting on average.")] = 20,
    seconds: Annotated[
        float | None, typer.Option(min=1, callback=finite, help="Time for judging, if it ends before.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of every answer in tokens.")] = DEFAULTS.max_new_tokens,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "eager",
    threads: Threads = DEFAULTS.threads,
    trust_remote_code: TrustRemoteCode = False,
    ranking: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Leave blocks out by importance: what rank-blocks stored.")
    ] = None,
    overrides: Sets = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write counts and ratios.")] = None,
) -> None:
    """The knobs of a model: values, mechanism, the work that each value takes away and the time that it saves."""
    with for_people():
        from chronostat.verbs import knobs as verb
        from chronostat.verbs.output import require_writable

        require_writable({"--json": json_file})
        said = "knobs takes keys of knobs and model.layout, and seed; others are flags"
        refuse_others(overrides or (), ("knobs.", "model.layout.", "seed="), said)
        config = load_config(None, overrides or ())
        own = ModelConfig(
            path=_path(model), device=device, dtype=dtype, engine=engine, trust_remote_code=trust_remote_code
        )
        config = config.model_copy(
            update={
                "model": own.model_copy(update={"layout": config.model.layout}),
                "measure": MeasureConfig(threads=threads, max_new_tokens=new_tokens),
            }
        )
        verb.knobs(
            config,
            image or (),
            prompt,
            repeats=repeats,
            seconds=seconds,
            ranking=ranking,
            json_file=json_file,
            out=out,
        )


@app.command()
def rank_blocks(
    model: Model = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Own samples; absent: the bundled task.")] = None,
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
    folder = resume or run_dir or _new_folder("rank-blocks")
    with for_people(folder, resume_with="rank-blocks"):
        others = (model, data, samples, seconds, method, keep, run_dir, seed, overrides)
        if resume and (sample or any(value is not None for value in others)):
            raise ConfigError("--resume continues a ranking as it was begun; give no other option with it")
        from chronostat.verbs import knobs as verb

        if resume:
            verb.resume_ranking(folder, out)
            return
        said = "rank-blocks takes keys of model, data and measure, and seed; its values of block_skip are its own"
        refuse_others(overrides or (), ("model.", "data.", "measure.", "seed="), said)
        given = {"model.path": _path(model), "data.path": data}
        paths = [f"{key}={json.dumps(str(path))}" for key, path in given.items() if path is not None]
        config = load_config(None, [*paths, *_sampling(overrides, sample=sample)], seed=seed)
        plan = verb.Plan(
            method=method or "one-at-a-time",
            samples=samples or RANKED_SAMPLES,
            seconds=seconds or RANKING_SECONDS,
            keep=tuple(sorted(set(keep or ()), reverse=True)),
            seed=config.seed,
        )
        verb.rank_blocks(config, plan, folder, _command(), out)


estimator_app = typer.Typer(help="The fallback for models whose stages cannot be measured.", no_args_is_help=True)
app.add_typer(estimator_app, name="estimator")


@estimator_app.command("evaluate")
def evaluate_estimator(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a measured run.")],
    seconds: Annotated[float, typer.Option(min=1, callback=finite, help="Time box of the new measurements.")] = 30.0,
    requests: Annotated[
        int | None, typer.Option(min=5, help="Most held-out requests; at least 5 are measured in any time.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the errors.")] = None,
) -> None:
    """How wrong estimates learned from a run are on held-out requests, beside measuring once."""
    with for_people():
        from chronostat.verbs import estimator
        from chronostat.verbs.output import require_writable

        require_writable({"--json": json_file})
        estimator.evaluate(run, seconds, requests, json_file, out)


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Directory or name; absent or bundled: the bundled model.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = DEFAULTS.threads,
    trust_remote_code: TrustRemoteCode = False,
    layout: Layout = None,
    seconds: Annotated[float, typer.Option(min=0.1, callback=finite, help="Time box of the measured repeats.")] = 20.0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was found.")] = None,
) -> None:
    """Whether this machine can be trusted with a measurement; exit status 0: yes, 10: noisy, 11: it cannot measure."""
    with for_people():
        from chronostat.verbs import doctor as verb
        from chronostat.verbs.measuring import read_layout
        from chronostat.verbs.output import require_writable

        require_writable({"--json": json_file})
        own = ModelConfig(
            path=_path(model),
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            layout=read_layout(layout) if layout else {},
        )
        status = verb.doctor(Config(model=own, measure=MeasureConfig(threads=threads)), seconds, json_file, out)
    raise typer.Exit(status)


def _sampling(overrides: list[str] | None, *, sample: bool) -> list[str]:
    """The overrides with what ``--sample`` stands for, which therefore counts for more than the file."""
    return [*(overrides or ()), *(["measure.sample=true"] if sample else ())]


def _path(model: str | None) -> str | None:
    """None for the bundled model."""
    return None if model == "bundled" else model


def _new_folder(verb: str) -> Path:
    return Path("runs") / f"{verb}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _command() -> str:
    return shlex.join(["chronostat", *sys.argv[1:]])
