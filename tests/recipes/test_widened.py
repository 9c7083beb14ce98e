"""A widened model computes what the small one does, with as many times the weights as it says."""

import sys

import pytest
import torch
from recipes.widened.__main__ import main
from recipes.widened.axes import Spreader, heads, repeated
from recipes.widened.widen import rule_for, widen, widened_config

from chronostat.errors import ModelError
from chronostat.knobs.registry import applied
from chronostat.models.load import load_vlm
from chronostat.records import Setting


def test_channels_by_hand():
    assert repeated(3, 2).sources.tolist() == [0, 0, 1, 1, 2, 2]
    # two heads of two channels, each head twice: a a b b as wholes
    assert heads(2, 2, 2).sources.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_shares_of_a_weight_sum_to_it():
    old = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
    new = Spreader(0.5, 0, torch.device("cpu")).shared(old, repeated(2, 4))
    assert torch.allclose(new.view(2, 2, 4).sum(-1), old, atol=1e-6)
    assert new[0, :4].unique().numel() == 4  # unequal ones
    assert torch.equal(Spreader(0, 0, torch.device("cpu")).shared(old, repeated(2, 4))[0, :4], torch.full((4,), 0.25))


@pytest.fixture(scope="module")
def wide(bundled):
    return widen(bundled.model, 2, vision_factor=1)


@pytest.mark.parametrize("text", ["full", "moe_topk=1", "block_skip=2,3"])
def test_logits_are_those_of_the_small_model(bundled, wide, demo_batch, text):
    setting = Setting() if text == "full" else Setting.parse(text)
    logits = []
    for model in (bundled.model, wide):
        with torch.no_grad(), applied(setting, model, bundled.processor):
            logits.append(model(**demo_batch).logits)
    assert logits[0].abs().max() > 5
    assert (logits[0] - logits[1]).abs().max() < 1e-3


def test_sizes(bundled, wide):
    text, small = wide.config.text_config, bundled.model.config.text_config
    assert (text.hidden_size, text.head_dim) == (2 * small.hidden_size, small.head_dim)
    assert text.num_experts == small.num_experts
    assert wide.config.vision_config.hidden_size == bundled.model.config.vision_config.hidden_size
    experts = [sum(p.numel() for n, p in m.named_parameters() if ".experts." in n) for m in (bundled.model, wide)]
    assert experts[1] == 4 * experts[0]


def test_what_cannot_be_widened_is_said(bundled):
    with pytest.raises(ModelError, match=r"there is no rule how to widen model\.other\.weight: only InternVL"):
        rule_for("model.other.weight")
    with pytest.raises(ModelError, match=r"widening by 0 \(vision 1\): give whole numbers of at least 1"):
        widened_config(bundled.model.config, 0, 1)


def test_the_command_writes_a_model_that_loads(tmp_path, monkeypatch, capsys):
    out = tmp_path / "wide"
    arguments = ["widened", "--factor", "2", "--dtype", "float32", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main() == 0
    loaded = load_vlm(str(out), device="cpu")
    weights = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert f"{weights:,} weights" in capsys.readouterr().out
    assert main() == ModelError.exit_code
    assert "exists; name a directory that does not" in capsys.readouterr().err
