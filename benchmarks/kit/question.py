"""A question that is answered cell by cell: its options, one model in memory at a time, what failed, and its table."""

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from benchmarks.kit.blocks import TimeBox
from benchmarks.kit.calls import Caller
from benchmarks.kit.cells import Cell, CellFile
from benchmarks.kit.models import BuiltModel, build
from benchmarks.kit.options import resumable_parser
from benchmarks.kit.results import commit
from chronostat.errors import ChronostatError
from chronostat.machine.stabilise import stabilised
from chronostat.measure.clock import clock_for

BUILD_S = 20.0  # the least that is worth building a model of real size for


@dataclass(frozen=True, kw_only=True)
class Work:
    """One cell that is measured now.

    Attributes:
        options: of the command line.
        built: the cell's model.
        tiles: of its requests.
        key: the cell's name in the file.
        file: all cells.
        box: the time for all cells.
    """

    options: argparse.Namespace
    built: BuiltModel
    tiles: int
    key: str
    file: CellFile
    box: TimeBox

    def open(self, **metadata: Any) -> Cell:  # noqa: ANN401 - plain data
        """The cell, to go on with; ``metadata`` is what it must have in common with an earlier part, beside tiles."""
        return self.file.open(self.key, self.built.model, tiles=self.tiles, new_tokens=self.options.tokens, **metadata)

    def caller(self, *, static_cache: bool = False) -> Caller:
        """Makes the calls that are held against each other."""
        model, batch = self.built.model, self.built.batch(self.tiles)
        return Caller(self.built, batch, self.options.tokens, clock_for(model.device), static_cache=static_cache)

    def say(self, text: str) -> None:
        """Print what became of the cell."""
        print(f"{self.key}: {text}", flush=True)


def add_blocks(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """``--blocks``, for questions whose cells are complete with so many rows."""
    parser.add_argument("--blocks", type=int, default=default, help=f"{what} (default {default})")


def has_all_blocks(cell: Cell, options: argparse.Namespace, model: str, tiles: int) -> bool:
    """Whether a cell has as many rows as ``--blocks`` asks for."""
    return len(cell.get("rows", [])) >= options.blocks


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a benchmark of cells ``model:tiles`` is made of.

    Attributes:
        name: of the benchmark and of its file.
        text: what its help says.
        cells: that are measured where none are named.
        tokens: of each answer, by default.
        measure: measures what is missing of a cell.
        table: what is printed of all cells that the file holds.
        is_complete: whether nothing of a cell is missing, from the cell, the options, the model's name and the tiles.
        add_options: adds the options of its own.
        mode: what else belongs to the cells' names, such as ``compiled``.
        default_tiles: of a cell that names none.
    """

    name: str
    text: str | None
    cells: str
    tokens: int
    measure: Callable[[Work], None]
    table: Callable[[dict[str, Cell]], str]
    is_complete: Callable[[Cell, argparse.Namespace, str, int], bool] = has_all_blocks
    add_options: Callable[[argparse.ArgumentParser], object] = lambda _: None
    mode: Callable[[argparse.Namespace], str] = lambda _: ""
    default_tiles: int = 5

    def parser(self) -> argparse.ArgumentParser:
        """Of the command line."""
        parser = resumable_parser(self.text)
        parser.add_argument("--cells", default=self.cells, help=f"model:tiles, in this order (default {self.cells})")
        parser.add_argument(
            "--tokens", type=int, default=self.tokens, help=f"tokens of each answer (default {self.tokens})"
        )
        self.add_options(parser)
        return parser

    def main(self) -> int:
        """Answer as the command line asks."""
        return self.answer(self.parser().parse_args())

    def answer(self, options: argparse.Namespace) -> int:
        """Measure the cells of the options as far as the time goes, print the table; 1 if a cell failed."""
        file, box = CellFile(self.name, options.out, options.commit or commit()), TimeBox(options.seconds)
        torch.set_num_threads(1)
        models, failed = _OneModel(options.device), False
        for key in () if options.show else options.cells.split(","):
            model, tiles = split_key(key, tiles=self.default_tiles)
            parts = (f"{model}:{tiles}", self.mode(options), accelerator(options.device))
            name = " ".join(part for part in parts if part)
            if self.is_complete(file.cells.get(name, {}), options, model, tiles):
                print(f"{key}: complete", flush=True)
            elif not box.allows(BUILD_S if options.device == "cuda" else 1.0):
                print(f"no time for {key}", flush=True)
            else:
                try:
                    self._measure(models, model, options=options, tiles=tiles, key=name, file=file, box=box)
                except (ChronostatError, RuntimeError) as error:  # the latter is torch's; the next cell may still do
                    failed = True
                    file.fail(name, error)
                    print(f"{key} failed: {error}", file=sys.stderr, flush=True)
        print(self.table(file.cells))
        return int(failed)

    def _measure(self, models: "_OneModel", model: str, **work: Any) -> None:  # noqa: ANN401 - the fields of Work
        """No name for the model outlives this, so that its memory is free when the next one is built."""
        built = models.named(model)
        with stabilised():
            self.measure(Work(built=built, **work))


class _OneModel:
    """The model of the last cell, which makes room for another one."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._built: BuiltModel | None = None

    def named(self, name: str) -> BuiltModel:
        """In bfloat16 on a GPU, in float32 on a CPU."""
        if self._built is None or self._built.name != name:
            self._built = None
            gc.collect()
            torch.cuda.empty_cache()
            started_s = perf_counter()
            self._built = build(name, self._device, torch.bfloat16 if self._device == "cuda" else torch.float32)
            weights = f"{self._built.parameters / 1e9:.2f} G weights"
            print(f"{name}: {weights} in {perf_counter() - started_s:.1f} s", flush=True)
        return self._built


def split_key(key: str, *, tiles: int) -> tuple[str, int]:
    """``model:tiles``, or ``model`` with the default number of tiles."""
    name, _, number = key.partition(":")
    return name, int(number) if number else tiles


def accelerator(device: str) -> str:
    """Short name of the GPU, such as ``H100``: cells of unlike GPUs stand beside each other. Empty for a CPU."""
    return torch.cuda.get_device_name().removeprefix("NVIDIA ").split()[0] if device == "cuda" else ""
