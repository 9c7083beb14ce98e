"""The tree: rooms of a size that one person can hold in mind, drawn in the docs and mirrored by the tests."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "chronostat"
MOST_LINES_OF_A_ROOM, MOST_LINES_OF_A_MODULE, MOST_LOOSE_MODULES = 2_700, 400, 8


def holds_python(path):
    return path.is_dir() and any(path.rglob("*.py"))


def lines(path):
    return len(path.read_text().splitlines())


ROOMS = sorted(filter(holds_python, PACKAGE.iterdir()))
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(PACKAGE))


def test_every_room_and_module_has_its_place_in_the_drawing():
    drawn = (ROOT / "docs" / "architecture.md").read_text()
    beside = {"__main__.py", "version.py"}
    names = [f"{room.name}/" for room in [*ROOMS, PACKAGE / "assets"]]
    names += [path.name for path in PACKAGE.glob("*.py") if path.name not in beside]
    assert [name for name in names if f"\n  {name} " not in drawn] == []


def test_few_modules_stand_in_no_room():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_LOOSE_MODULES


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_a_room_is_not_too_large(room):
    assert sum(map(lines, room.rglob("*.py"))) <= MOST_LINES_OF_A_ROOM


def test_no_module_is_too_long():
    assert {name_of(path): n for path in MODULES if (n := lines(path)) > MOST_LINES_OF_A_MODULE} == {}


def test_the_unit_tests_mirror_the_rooms():
    tested = {path.name for path in (ROOT / "tests" / "unit").iterdir() if holds_python(path)}
    assert tested == {room.name for room in ROOMS}


def test_a_loose_unit_test_is_of_a_loose_module():
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "unit").glob("test_*.py")}
    assert tests <= {path.stem for path in PACKAGE.glob("*.py")}
