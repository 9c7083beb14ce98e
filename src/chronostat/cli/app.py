"""The command line: the list of verbs.

A verb's own file says how it is typed; the file of the same name in ``actions`` says what it then does. A verb
imports the configuration inside its function and torch after it has read that, so that ``--help`` and mistakes answer
at once.
"""

from typing import Annotated

import typer

from chronostat.cli.ask import ask
from chronostat.cli.calibrate import calibrate
from chronostat.cli.data import check, convert
from chronostat.cli.demo import demo
from chronostat.cli.doctor import doctor
from chronostat.cli.estimator import evaluate_estimator
from chronostat.cli.knobs import knobs
from chronostat.cli.measure import measure
from chronostat.cli.rank_blocks import rank_blocks
from chronostat.cli.report import report
from chronostat.cli.serve import serve
from chronostat.cli.terminal import out
from chronostat.cli.train import train
from chronostat.cli.validate import validate
from chronostat.version import VERSION

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


for verb in (demo, train, validate, calibrate, ask, serve, report, measure, knobs, rank_blocks):
    app.command()(verb)
estimator = typer.Typer(help="The fallback for models whose stages cannot be measured.", no_args_is_help=True)
estimator.command("evaluate")(evaluate_estimator)
app.add_typer(estimator, name="estimator")
data = typer.Typer(help="Files of your own samples: what they hold, and one file of them.", no_args_is_help=True)
data.command("check")(check)
data.command("convert")(convert)
app.add_typer(data, name="data")
app.command()(doctor)
