"""Tables of right answers by setting and kind: how they are stored, read and printed."""

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from chronostat.data.demo.questions import KINDS
from chronostat.data.demo.task import UNSEEN_SUFFIX
from chronostat.errors import DataError


class Answered(TypedDict):
    """How one kind of question was answered.

    `bits` says which scenes were answered right, packed eight to a byte and written in base 64; scene i is the same
    for all rows of a table.
    """

    kind: str
    n: int
    right: int
    bits: NotRequired[str]


class Row(Answered):
    """The same under one setting."""

    vision_tokens: int
    moe_topk: int
    block_skip: list[int]
    image_keep: NotRequired[str]


Setting = tuple[int, int, tuple[int, ...]] | tuple[int, int, tuple[int, ...], str]
"""Image tokens, experts per token, skipped blocks, and what is kept of the image tokens where not all are."""
FULL: Setting = (272, 4, ())


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with what they were measured on.

    Attributes:
        page: fingerprint of the weights, split, questions per kind, and the conditions.
        rows: one for each setting and kind.
    """

    page: dict[str, Any]
    rows: list[Row]

    @property
    def settings(self) -> set[Setting]:
        """The settings that were measured."""
        return {setting_of(row) for row in self.rows}


def write_table(path: Path, table: Table) -> None:
    """Stores a table, one row a line; written aside and renamed, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    lines = ",\n".join(json.dumps(row) for row in table.rows)
    aside.write_text(f'{{"page": {json.dumps(table.page)},\n"rows": [\n{lines}\n]}}\n')
    aside.replace(path)


def read_table(path: Path) -> Table:
    """Reads what `write_table` stored.

    Raises:
        DataError: there is no such table.
    """
    try:
        stored = json.loads(path.read_text())
        return Table(page=stored["page"], rows=stored["rows"])
    except FileNotFoundError as error:
        raise DataError(f"there is no table {path}; measure it with: python -m recipes.demo_vlm table") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no table of this recipe ({error!r}); measure it anew under another name") from error


def setting_of(row: Mapping[str, Any]) -> Setting:
    """The setting of a row, of answers or of costs."""
    setting = row["vision_tokens"], row["moe_topk"], tuple(row["block_skip"])
    return (*setting, row["image_keep"]) if "image_keep" in row else setting


def pack_bits(right: Sequence[bool]) -> str:
    """Which answers are right, as text."""
    return base64.b64encode(np.packbits(np.asarray(right, dtype=bool)).tobytes()).decode()


def unpack_bits(row: Row) -> NDArray[np.bool_]:
    """Which answers of a row are right, [n]; the row has `bits`."""
    packed = np.frombuffer(base64.b64decode(row["bits"]), dtype=np.uint8)
    return np.unpackbits(packed, count=row["n"]).astype(bool)


def accuracies(rows: Iterable[Row]) -> dict[Setting, dict[str, float]]:
    """Accuracy by setting, then kind."""
    table: dict[Setting, dict[str, float]] = defaultdict(dict)
    for row in rows:
        table[setting_of(row)][row["kind"]] = row["right"] / row["n"]
    return dict(table)


def shares() -> dict[str, float]:
    """The weight of each kind in the shipped task, summing to 1."""
    total = sum(kind.share for kind in KINDS.values())
    return {name: kind.share / total for name, kind in KINDS.items() if kind.share}


def mean_over_mix(by_kind: dict[str, float], suffix: str = "") -> float:
    """The mean accuracy over the shipped mix; `suffix` picks the kinds of unseen wordings."""
    return sum(weight * by_kind[kind + suffix] for kind, weight in shares().items())


COLUMNS: dict[str, Setting] = {
    "full": FULL,
    "160 tokens": (160, 4, ()),
    "80 tokens": (80, 4, ()),
    "16 tokens": (16, 4, ()),
    "top_k 2": (272, 2, ()),
    "top_k 1": (272, 1, ()),
    "6 blocks": (272, 4, (3, 4)),
    "4 blocks": (272, 4, (2, 3, 4, 5)),
    "cheapest": (16, 1, (2, 3, 4, 5)),
}
"""Settings that are shown side by side: full, each knob alone, and the cheapest of all."""


def accuracy_lines(rows: Iterable[Row]) -> list[list[str]]:
    """A head and a line for each kind, then for the mean over the mix, of the settings in `COLUMNS`."""
    table = accuracies(rows)
    columns = {name: table[setting] for name, setting in COLUMNS.items() if setting in table}
    kinds = [kind for kind in next(iter(columns.values()), {}) if not kind.endswith(UNSEEN_SUFFIX)]
    lines = [["kind", *columns]]
    lines += [[kind, *(f"{column[kind]:.3f}" for column in columns.values())] for kind in kinds]
    return [*lines, ["mean over the mix", *(f"{mean_over_mix(column):.3f}" for column in columns.values())]]


def print_accuracies(rows: Iterable[Row]) -> None:
    """Prints accuracy by kind at full and along each knob, and the mean over the shipped mix."""
    for first, *others in accuracy_lines(rows):
        print(first.ljust(18), *(cell.rjust(10) for cell in others))
