"""The documents: complete, up to date, linked rightly, and their code runs on the bundled model."""

import pkgutil
import re
import runpy
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.main import get_command

import chronostat
from chronostat import errors
from chronostat.cli.app import app
from chronostat.cli.demo import DEMO_VALUES
from chronostat.config import Config, load_config
from chronostat.wire.protocol import ChatRequest
from e2e.commands import FEW_SETTINGS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WRITTEN = [*DOCUMENTS, ROOT / "benchmarks" / "README.md", *ROOT.glob("recipes/**/*.md"), *ROOT.glob("examples/*.py")]
WRITTEN += [ROOT / "Makefile", *ROOT.glob("configs/*.toml")]
PACKAGE = ROOT / "src" / "chronostat"
ROOMS = [path.name for path in PACKAGE.iterdir() if path.is_dir()]
FROM_THE_ROOT = re.compile(
    r"(?<![\w./-])(?:(?:src|tests|benchmarks|docs|recipes|examples|configs)/[\w./-]*\w"
    rf"|(?:{'|'.join(ROOMS)})/[\w./-]*(?<![A-Z])\.py)\b"  # cli/VERB.py stands for many
)
MODULE = re.compile(r"(?<![\w./-])chronostat(?:\.[a-z_]\w*)+")
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
REGISTRY = re.compile(r"pypi\.org|pythonhosted|download\.pytorch|npmjs|huggingface\.co|hf\.co|conda\.io|anaconda\.org")
VERBS = {
    " ".join(filter(None, (name, inner))): command
    for name, group in get_command(app).commands.items()
    for inner, command in getattr(group, "commands", {"": group}).items()
}


def name_of(path):
    return str(path.relative_to(ROOT))


def every_document():
    return pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


def code_of(document):
    return [text for language, text in FENCE.findall(document.read_text()) if language == "python"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A working directory with the run that the documents speak of: ``runs/demo``, trained for a few trials."""
    from chronostat.runs.session import begin
    from chronostat.runs.training import train

    folder = tmp_path_factory.mktemp("docs")
    cheap = "knobs.block_skip=[[], [2, 3, 4, 5]]"  # far below the budgets of the documents, also where time is noisy
    short = ("train.calibration_executions=16", "train.select_executions=8", "train.executions=6")
    config = load_config(None, [*FEW_SETTINGS, cheap, *short])
    with begin(config, run_dir=folder / "runs" / "demo", command="chronostat demo --run-dir runs/demo") as session:
        train(session)
        session.store.compact()
    return folder


@pytest.fixture
def restored_knobs(monkeypatch):
    from chronostat.knobs import registry as knobs

    known = dict(knobs.KNOBS)
    yield
    knobs.KNOBS.clear()
    knobs.KNOBS.update(known)


@pytest.mark.slow
@pytest.mark.usefixtures("restored_knobs")
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if code_of(d)], ids=name_of)
def test_the_python_code_runs(document, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    names = {"__name__": "document"}
    for number, code in enumerate(code_of(document), start=1):
        exec(compile(code, f"{name_of(document)}, block {number}", "exec"), names)


def test_the_example_of_a_controller_runs(workplace, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["answer_within_budget.py", str(workplace / "runs" / "demo" / "controller")])
    runpy.run_path(str(ROOT / "examples" / "answer_within_budget.py"), run_name="__main__")
    assert capsys.readouterr().out.count("mean budget") == 3


def test_the_example_of_a_controller_says_what_a_budget_would_need(workplace, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["answer_within_budget.py", str(workplace / "runs" / "demo" / "controller")])
    example = runpy.run_path(str(ROOT / "examples" / "answer_within_budget.py"))
    monkeypatch.setitem(example["main"].__globals__, "FRACTIONS", (1e-3,))
    example["main"]()
    assert "no setting can meet the budget mean 0.001 of full; the cheapest needs" in capsys.readouterr().out


def test_the_example_of_measuring_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["measure_stages.py"])
    runpy.run_path(str(ROOT / "examples" / "measure_stages.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert out.count("vision_ms") == out.count("total_ms") == 3


def test_the_example_of_a_controller_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["answer_within_budget.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"StoreError: .* holds no controller"):
        runpy.run_path(str(ROOT / "examples" / "answer_within_budget.py"), run_name="__main__")
    monkeypatch.setattr(sys, "argv", ["answer_within_budget.py"])
    with pytest.raises(
        SystemExit, match=r"name one directory: python examples/answer_within_budget\.py RUN/controller"
    ):
        runpy.run_path(str(ROOT / "examples" / "answer_within_budget.py"), run_name="__main__")


def test_the_example_of_measuring_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure_stages.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"ModelError: .* is no model directory"):
        runpy.run_path(str(ROOT / "examples" / "measure_stages.py"), run_name="__main__")


@every_document()
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", document.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{name_of(document)}: {target}"
        if anchor:
            assert anchor in anchors_of(linked), f"{name_of(document)}: {target}"


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_every_path_of_the_repository_that_is_named_exists(path):
    for named in FROM_THE_ROOT.findall(path.read_text()):
        places = (ROOT / named, PACKAGE / named, ROOT / "tests" / named)
        assert any(place.exists() for place in places), f"{name_of(path)}: {named}"


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_every_module_that_is_named_can_be_imported(path):
    for named in MODULE.findall(path.read_text()):
        pkgutil.resolve_name(named)


def test_every_test_that_the_page_of_trust_names_exists():
    named = TEST.findall((ROOT / "docs" / "trust.md").read_text())
    assert len(named) > 100
    for file, function in named:
        path = ROOT / "tests" / ("" if "/" in file else "unit/measure") / file
        assert f"\ndef {function}(" in path.read_text(), f"{file}::{function}"


def anchors_of(document):
    """Anchors as GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, *ROOT.glob("configs/*"), *ROOT.glob("examples/*.py"), ROOT / "Makefile"], ids=name_of
)
def test_no_registry_is_named(path):
    assert not REGISTRY.search(path.read_text())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_its_options_are_documented(verb):
    text = (ROOT / "docs" / "commands.md").read_text()
    assert re.search(rf"^\| `chronostat {verb}\b", text, re.MULTILINE)
    options = [option for parameter in VERBS[verb].params for option in parameter.opts if option.startswith("--")]
    for option in options:
        assert option == "--help" or f"`{option}" in text, f"{option} of {verb}"


def test_every_field_of_a_request_to_the_server_is_documented():
    text = (ROOT / "docs" / "serving.md").read_text()
    assert [name for name in ChatRequest.model_fields if f"`{name}`" not in text] == []


def test_every_exit_code_is_documented():
    text = (ROOT / "docs" / "commands.md").read_text()
    for error in [errors.ChronostatError, *errors.ChronostatError.__subclasses__()]:
        if error.__module__ == errors.__name__:
            assert f"| {error.exit_code} | `{error.__name__}` |" in text


def test_every_public_name_is_documented():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for name in chronostat.__all__:
        assert name == "__version__" or f"`{name}`" in text, name


def test_the_pages_that_are_made_from_the_configuration_are_up_to_date():
    made = runpy.run_path(str(ROOT / "docs" / "make_config.py"))
    assert (ROOT / "docs" / "config.md").read_text() == made["page"](), "run: python docs/make_config.py"
    assert (ROOT / "configs" / "demo.toml").read_text() == made["demo"](), "run: python docs/make_config.py"


def test_every_field_of_the_configuration_is_documented():
    text = (ROOT / "docs" / "config.md").read_text()
    for section, field in Config.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        keys = field.annotation.model_fields if is_section else [section]
        assert f"## `[{section}]`" in text or not is_section
        for key in keys:
            assert re.search(rf"^\| `{key}` \|.*\| \S.* \|$", text, re.MULTILINE), f"{section}.{key}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.toml")), ids=name_of)
def test_every_shipped_configuration_loads(path):
    assert load_config(path) != Config()


def test_the_demo_configuration_is_what_demo_runs():
    assert load_config(ROOT / "configs" / "demo.toml") == load_config(None, DEMO_VALUES)
