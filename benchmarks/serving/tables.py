"""How is it shown? Tables of what the parts have found; raw values are in the file alone."""

from collections.abc import Mapping
from typing import Any

from benchmarks.kit.estimates import format_estimate, markdown_table
from benchmarks.serving.deadlines import WAYS
from chronostat.records import Estimate

_APART = ("raw", "sources", "rows", "able", "conditions")


def tables_of(found: Mapping[str, Any]) -> str:
    """Values by their place; deadlines and what servers can do have tables of their own."""
    texts = [value_table(found)]
    if "rows" in found:
        texts.append(deadline_table(found["rows"]))
    if "able" in found:
        texts.append(able_table(found["able"]))
    return "\n\n".join(texts)


def deadline_table(rows: Mapping[str, Any]) -> str:
    """A row for each server and budget: what was kept, by what was charged, and what was right, in both ways to ask."""
    shown = [["server", "budget / full", *(head for way in WAYS for head in (f"{way}: kept", "right"))]]
    for name, row in rows.items():
        server, _, fraction = name.rpartition(" ")
        texts = [text for way in WAYS for text in (interval(row[way]["kept"]), interval(row[way]["right"]))]
        shown.append([server, fraction, *texts])
    return markdown_table(shown)


def able_table(able: Mapping[str, Mapping[str, bool]]) -> str:
    """What each server can do."""
    heads = ["", "transformers serve", "chronostat serve"]
    said = {True: "yes", False: "no"}
    return markdown_table([heads, *([name, said[each["theirs"]], said[each["ours"]]] for name, each in able.items())])


def value_table(found: Mapping[str, Any]) -> str:
    """Values by their place in what was found."""
    return markdown_table([["what", "value"], *([place, text] for place, text in _flat(found, ""))])


def interval(value: Mapping[str, float | None]) -> str:
    """As it is read from a file: bounds that are not known are None."""
    point, low, high = (float("nan") if value[name] is None else float(value[name] or 0.0) for name in _ESTIMATE)
    return format_estimate(Estimate(point=point, low=low, high=high))


_ESTIMATE = ("point", "low", "high")


def _flat(found: Mapping[str, Any], before: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        place = f"{before}{name}"
        if name in _APART:
            continue
        if isinstance(value, dict) and value.keys() == set(_ESTIMATE):
            rows.append((place, interval(value)))
        elif isinstance(value, dict) and "median" in value:
            rows.append((place, f"{interval(value['median'])}, {value['p5']:.3f} to {value['p95']:.3f}"))
        elif isinstance(value, dict):
            rows += _flat(value, f"{place}, ")
        elif isinstance(value, list):
            rows.append((place, ", ".join(_text(each) for each in value)))
        else:
            rows.append((place, _text(value)))
    return rows


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
