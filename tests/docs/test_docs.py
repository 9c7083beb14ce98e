"""The documents: complete, up to date, linked rightly, and their code runs on the bundled model."""

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
from chronostat.cli.demo import DEMO_SECONDS
from chronostat.config import Config, load_config
from e2e.commands import ENDLESS, FEW_SETTINGS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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
    """A working directory with the run that the documents speak of: ``runs/demo``, trained for three trials."""
    from chronostat.runs.session import begin
    from chronostat.runs.training import train

    folder = tmp_path_factory.mktemp("docs")
    config = load_config(None, [*FEW_SETTINGS, *ENDLESS, "train.trials=3", "train.calibration_samples=1"])
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
    assert load_config(ROOT / "configs" / "demo.toml") == Config(seconds=DEMO_SECONDS)


def test_every_room_and_module_has_its_place_in_the_tree():
    tree = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "src" / "chronostat").iterdir():
        is_room = path.is_dir() and path.name not in {"__pycache__", "templates"}
        is_module = path.suffix == ".py" and path.name not in {"__main__.py", "version.py"}
        if is_room or is_module:
            assert f"  {path.name}{'/' if is_room else ''} " in tree, path.name
