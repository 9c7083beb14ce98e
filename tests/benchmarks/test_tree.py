"""Benchmarks are found: each asks its question in its first line, has a row in the README, and needs no other one."""

import ast
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
README = (BENCHMARKS / "README.md").read_text()
ALL = sorted(path.relative_to(BENCHMARKS) for path in BENCHMARKS.rglob("*.py"))
FILES = [path for path in ALL if path.parts[0] != "kit"]
QUESTIONS = sorted({path.parts[0].removesuffix(".py") for path in FILES} - {"__init__"})


def parsed(path):
    return ast.parse((BENCHMARKS / path).read_text())


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_first_line_asks_a_question(path):
    assert "?" in ast.get_docstring(parsed(path)).splitlines()[0]


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_has_a_row_with_its_command(name):
    file = f"{name}.py" if (BENCHMARKS / f"{name}.py").is_file() else f"{name}/"
    assert re.search(rf"^\| `{re.escape(file)}` \| .* \| `python -m benchmarks\.{name}\b", README, re.MULTILINE)


@pytest.mark.parametrize("path", ALL, ids=str)
def test_a_question_imports_no_other_one_and_the_kit_imports_none(path):
    names = {
        node.module.split(".")[1]
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("benchmarks.")
    }
    assert names <= {"kit", path.parts[0]}


@pytest.mark.parametrize("result", sorted((BENCHMARKS / "results").iterdir()), ids=lambda path: path.name)
def test_a_result_says_where_it_comes_from(result):
    name = "misranking_*.json" if result.name.startswith("misranking_") else result.name
    assert f"`results/{name}`" in README


@pytest.mark.parametrize("path", re.findall(r"`(kit/\w+\.py)`", README))
def test_a_file_of_the_kit_that_is_described_is_there(path):
    assert (BENCHMARKS / path).is_file()


def test_every_file_of_the_kit_is_described():
    there = {f"kit/{path.name}" for path in (BENCHMARKS / "kit").glob("*.py")} - {"kit/__init__.py"}
    assert there == set(re.findall(r"`(kit/\w+\.py)`", README))
