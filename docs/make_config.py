"""Write docs/config.md and configs/demo.toml from the models in ``chronostat.config``: ``python docs/make_config.py``.

The docstring under a field is its documentation; a test keeps both files equal to what this makes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from chronostat.cli.demo import DEMO_VALUES
from chronostat.config import Config, load_config

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "config.md"
DEMO = ROOT / "configs" / "demo.toml"

_HEAD = """# Configuration

A run is configured by one TOML file, `chronostat train CONFIG.toml`, by `--set section.key=value` flags that
override it, and by the defaults below. It is read once, before anything is loaded. Every number is finite. An unknown
key or a value that is not allowed ends the command with exit code 2 and names the keys or values that are allowed. What
a run was configured with is stored in its `run.json`.

[configs/demo.toml](../configs/demo.toml) spells out what `chronostat demo` runs;
[configs/own_data.toml](../configs/own_data.toml) is a start for your own model and data.

`absent` means that the key is left out. This page is made by `python docs/make_config.py` from
`src/chronostat/config.py`; do not edit it by hand.
"""

_DEMO_HEAD = """# What `chronostat demo` runs; all but `seconds` and `device` is the default. As two commands:
#   chronostat train configs/demo.toml --run-dir runs/demo
#   chronostat validate runs/demo
# Made by `python docs/make_config.py`; do not edit it by hand.
"""


def page() -> str:
    """The text of docs/config.md."""
    return "\n".join(
        [_HEAD, *_section("", Config), *(part for key, model in sections() for part in _section(key, model))]
    )


def demo() -> str:
    """The text of configs/demo.toml."""
    config = load_config(None, DEMO_VALUES)
    lines = [_DEMO_HEAD, *_assignments(config)]
    for key, _ in sections():
        lines += ["", f"[{key}]", *_assignments(getattr(config, key))]
    return "\n".join(lines) + "\n"


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Name and model of each section."""
    for key, field in Config.model_fields.items():
        if model := _as_section(field):
            yield key, model


def _as_section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _section(key: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## {f'`[{key}]`' if key else 'Top level'}\n"
    yield f"{(model.__doc__ or '').strip()}\n"
    yield "| key | allowed | default | meaning |"
    yield "|---|---|---|---|"
    schema = Config.model_json_schema()
    properties = (schema["$defs"][model.__name__] if key else schema)["properties"]
    for name, field in model.model_fields.items():
        if _as_section(field) is None:
            meaning = " ".join((field.description or "").replace("``", "`").split())
            yield f"| `{name}` | {_allowed(properties[name])} | {_default(field)} | {meaning} |"
    yield ""


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "absent" if value is None else f"`{_toml(value)}`"


def _allowed(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_options(schema))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of {' or '.join(map(_plural, _options(schema['items'])))}"
    word = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`", "object": "table"}
    return word[schema["type"]] + _bounds(schema)


def _options(schema: Mapping[str, Any]) -> list[str]:
    """What is allowed, one for each kind of value."""
    return [_allowed(option) for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]


def _plural(text: str) -> str:
    noun, comma, bounds = text.partition(",")
    noun = f"lists{noun.removeprefix('list')}" if noun.startswith("list") else f"{noun}s"
    return f"({noun}{comma}{bounds})" if comma else noun


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    found = [f"{word} {schema[key]:g}" for key, word in words.items() if key in schema]
    return f", {', '.join(found)}" if found else ""


def _assignments(config: BaseModel) -> Iterator[str]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if _as_section(field) is None:
            yield f"# {name} is absent" if value is None else f"{name} = {_toml(value)}"


def _toml(value: object) -> str:
    """What JSON and TOML write alike."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    DEMO.write_text(demo(), encoding="utf-8")
