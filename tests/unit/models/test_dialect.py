"""The bundled task may be asked of models that read and write as the bundled one does."""

import json
import shutil

import pytest

from chronostat.config import load_config
from chronostat.data.demo import DemoTask
from chronostat.errors import ConfigError
from chronostat.models.load import BUNDLED, speaks_like_the_bundled
from chronostat.runs.workload import load_data


@pytest.fixture
def tuned(tmp_path, bundled):
    """A model that was saved again."""
    shutil.copytree(BUNDLED, tmp_path / "tuned")
    bundled.processor.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def test_a_model_that_was_made_from_the_bundled_one(tuned):
    assert speaks_like_the_bundled(tuned)
    assert isinstance(load_data(load_config(None, [f"model.path={tuned}"])), DemoTask)


def with_another_template(folder):
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + " ")


def with_another_word(folder):
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["newword"] = len(tokenizer["model"]["vocab"])
    file.write_text(json.dumps(tokenizer))


def without_a_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize("change", [with_another_template, with_another_word, without_a_tokenizer, shutil.rmtree])
def test_a_model_with_another_tokenizer_or_template(tuned, change):
    change(tuned)
    assert not speaks_like_the_bundled(tuned)
    with pytest.raises(ConfigError, match="or a model directory with its tokenizer and chat"):
        load_data(load_config(None, [f"model.path={tuned}"]))
