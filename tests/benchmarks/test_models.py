"""Models with random weights: their requests and their sizes."""

import pytest
import torch
import transformers
from benchmarks.kit.models import build
from benchmarks.kit.sizes import MODELS

from chronostat.measure.generate import measure_generate
from chronostat.models.prepare import image_token_id


@pytest.mark.parametrize(("name", "tokens"), [("toy-qwen", (4, 20)), ("toy-moe", (4, 20)), ("toy-molmo2", (16, 52))])
def test_models_see_as_many_image_tokens_as_they_are_asked_for(name, tokens):
    family, _ = MODELS[name]
    if not hasattr(transformers, family.config_class):
        pytest.skip(f"transformers {transformers.__version__} has no {family.config_class}")
    built = build(name, "cpu", torch.float32)
    for tiles, expected in zip((1, 5), tokens, strict=True):
        batch = built.batch(tiles)
        assert (batch["input_ids"] == image_token_id(built.model)).sum() == expected
        timing = measure_generate(built.model, batch, max_new_tokens=3).timing
        assert timing.source == "measured", timing.unseen
        assert timing.new_tokens == 3


@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen2.5-vl-7b", 8.29), ("internvl-moe-30b", 30.85), ("molmo2-8b", 8.66), ("cpu-300m", 0.302)],
)
def test_models_have_their_real_sizes(name, billions):
    family, _ = MODELS[name]
    if not hasattr(transformers, family.config_class):
        pytest.skip(f"transformers {transformers.__version__} has no {family.config_class}")
    assert build(name, "meta", torch.bfloat16).parameters / 1e9 == pytest.approx(billions, abs=0.006)
