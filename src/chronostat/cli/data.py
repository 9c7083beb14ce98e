"""chronostat data, as it is typed."""

from pathlib import Path
from typing import Annotated

import typer

from chronostat.cli.options import TrustRemoteCode, model_path
from chronostat.cli.terminal import for_people, out

File = Annotated[Path, typer.Argument(metavar="FILE", help="Own samples, a file or folder in any layout.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="FIELD=NAME", help="The column of a field, as data.columns; repeatable."),
]


def check(
    file: File,
    columns: Columns = None,
    quality: Annotated[str, typer.Option(metavar="NAME", help="How answers are scored, as data.quality.")] = "exact",
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Directory or name; absent or bundled: the bundled model.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """What a file of samples holds, what each size of image costs this model in tokens, and what a run would refuse."""
    with for_people():
        from chronostat.config import load_config

        keys = [f"data.columns.{each}" for each in columns or ()]
        config = load_config(None, [*keys, f"data.quality={quality}"])
        own = config.model.model_copy(update={"path": model_path(model), "trust_remote_code": trust_remote_code})
        from chronostat.cli.actions import data as action

        action.check_file(file, config.model_copy(update={"model": own}), out)


def convert(
    file: File,
    to: Annotated[Path, typer.Option(metavar="FILE.parquet", help="Where the samples are written, images included.")],
    columns: Columns = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", min=0, help="Write them in a drawn order; absent: as they are.")
    ] = None,
) -> None:
    """Write the samples of a file as one Parquet file of our own, with the files of their images and with splits."""
    with for_people():
        from chronostat.cli.actions import data as action
        from chronostat.cli.output import require_writable
        from chronostat.config import load_config

        require_writable({"--to": to})
        config = load_config(None, [f"data.columns.{each}" for each in columns or ()])
        action.convert_file(file, to, config.data.columns, shuffle, out)
