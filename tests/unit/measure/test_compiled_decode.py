"""A decode step that ``generate()`` compiles: no hook is in its graph, and no later call compiles it again."""

import sys

import pytest
import torch
from transformers import CompileConfig, GenerationConfig

from chronostat import measuring
from chronostat.measure.generate import measure_generate
from chronostat.models.compiled import graphs_compiled
from stand_ins.batches import batch_of
from stand_ins.observing import Snapshot

pytestmark = pytest.mark.slow
NEW_TOKENS = 5


@pytest.fixture(scope="module")
def batch(bundled, demo_sample):
    return batch_of(bundled, demo_sample.load_images(), demo_sample.prompt, max_patches=1)


@pytest.fixture
def config(bundled, monkeypatch):
    """As on CUDA with a static cache, where ``generate()`` compiles by itself; a hook inside would raise here."""
    from torch import _dynamo

    compiling = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compiling._compile_all_devices = True
    yield GenerationConfig(
        compile_config=compiling,
        cache_implementation="static",
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )
    _dynamo.reset()
    for name in ("_compiled_call", "_last_compile_config"):
        vars(bundled.model).pop(name, None)


def test_all_stages_are_seen_and_nothing_is_compiled_twice(bundled, batch, config):
    model = bundled.model
    plain = model.generate(**batch, generation_config=config)
    graphs, before = graphs_compiled(), Snapshot(model)
    assert graphs > 0
    for _ in range(3):
        measured = measure_generate(model, batch, max_new_tokens=NEW_TOKENS, generation_config=config)
        with measuring(model) as own:
            model.generate(**batch, generation_config=config)
        for each in (measured, own):
            assert each.compiled
            assert (each.timing.source, each.timing.unseen, each.timing.decode_steps) == ("measured", None, 4)
            assert torch.equal(each.sequences, plain)
    assert graphs_compiled() == graphs
    assert not sys.modules["torch._dynamo.utils"].counters["graph_break"]
    before.assert_equals(model)


def test_a_call_that_compiles_is_no_clean_measurement(bundled, batch, config):
    first = measure_generate(bundled.model, batch, max_new_tokens=NEW_TOKENS, generation_config=config)
    second = measure_generate(bundled.model, batch, max_new_tokens=NEW_TOKENS, generation_config=config)
    assert "torch compiled 1 graph(s) meanwhile, as a first call does: warm up" in first.disturbed
    assert "compiled" not in (second.disturbed or "")
    assert first.output_ids == second.output_ids


def test_chunks_of_a_prefill_that_is_compiled_leave_only_the_total(bundled, batch, config):
    config.prefill_chunk_size = 16
    plain = bundled.model.generate(**batch, generation_config=config)
    measured = measure_generate(bundled.model, batch, max_new_tokens=NEW_TOKENS, generation_config=config)
    assert torch.equal(measured.sequences, plain)
    assert measured.timing.source == "total_only"
    assert "generate() compiled a prefill in chunks, where no hook may be" in measured.timing.unseen
