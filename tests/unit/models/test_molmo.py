"""Checkpoints of the first Molmo generation: code for transformers 4 that loads, generates and is measured on 5."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, dynamic_module_utils

from chronostat.errors import ModelError
from chronostat.execution.execute import BatchRequest, execute
from chronostat.knobs.registry import applied, find_knob
from chronostat.measure.clock import FakeClock
from chronostat.measure.generate import measure_generate
from chronostat.models.anatomy import anatomy_of
from chronostat.models.load import load_vlm
from chronostat.records import Setting
from stand_ins.molmo_like import PROMPT_TOKENS, molmo_batch
from stand_ins.molmo_v1 import write_checkpoint
from stand_ins.observing import Snapshot, counted_calls, delay

NEW_TOKENS = 6
GREEDY = GenerationConfig(max_new_tokens=NEW_TOKENS, use_cache=True, do_sample=False, pad_token_id=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the checkpoints are, and the copies of their code that transformers makes."""
    folder = tmp_path_factory.mktemp("molmo")
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
        patches.setattr(sys, "path", [*sys.path])
        yield folder


@pytest.fixture(scope="module", params=[True, False], ids=["positions given", "positions counted"])
def checkpoint(request, folder):
    return write_checkpoint(folder / f"molmo_v1_{request.param}", use_position_ids=request.param)


@pytest.fixture(scope="module")
def vlm(checkpoint):
    return load_vlm(checkpoint, device="cpu", trust_remote_code=True)


@pytest.fixture
def model(vlm):
    """The model, which must be as it was after each test."""
    before = Snapshot(vlm.model)
    yield vlm.model
    before.assert_equals(vlm.model)
    assert "generate" not in vars(vlm.model)


@torch.no_grad()
def greedy_without_cache(model, batch):
    """Prompt and answer from forwards of the whole sequence."""
    ids = batch["input_ids"]
    for _ in range(NEW_TOKENS):
        mask = torch.ones_like(ids)
        logits = model(**{**batch, "input_ids": ids}, attention_mask=mask, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids


def blocks_of(model):
    return model.model.transformer.blocks


def test_every_tensor_is_loaded_unchanged(vlm, checkpoint):
    saved, loaded = load_file(checkpoint / "model.safetensors"), vlm.model.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in saved.items())
    assert not any(weight.is_meta for weight in (*vlm.model.parameters(), *vlm.model.buffers()))
    assert type(vlm.model).__name__ == "MolmoV1ForCausalLM"
    assert type(vlm.processor).__name__ == "MolmoV1Processor"


def test_without_remote_code_it_is_refused(checkpoint):
    with pytest.raises(ModelError, match=r"(?s)cannot load .*trust_remote_code=True.*--trust-remote-code"):
        load_vlm(checkpoint, device="cpu")


def test_another_language_model_with_its_own_code_is_still_refused(checkpoint):
    modelling = checkpoint / "modeling_molmo_v1.py"
    text = modelling.read_text()
    modelling.write_text(text.replace("def generate_from_batch", "def answer"))
    try:
        with pytest.raises(ModelError, match=r"is a 'molmo' model, which takes no image"):
            load_vlm(checkpoint, device="cpu", trust_remote_code=True)
    finally:
        modelling.write_text(text)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (folder := tmp_path / "lacking").mkdir()
    for file in checkpoint.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "n_layers": config["n_layers"] + 1}))
    with pytest.raises(ModelError, match=r"lacks \d+ weights of the model"):
        load_vlm(folder, device="cpu", trust_remote_code=True)


def test_the_parts_are_found(model):
    anatomy = anatomy_of(model)
    assert anatomy.vision == ("model.vision_backbone",)
    assert anatomy.projector == ("model.vision_backbone.image_projector",)
    assert anatomy.block_list == "model.transformer.blocks"
    assert anatomy.routers == tuple(f"model.transformer.blocks.{i}.mlp" for i in range(4))
    assert anatomy.head == "lm_head"


@pytest.mark.parametrize("seed", range(3))
def test_the_answer_is_that_of_greedy_decoding_without_cache(model, seed):
    batch = molmo_batch(seed)
    expected = greedy_without_cache(model, batch)
    assert torch.equal(model.generate_from_batch(batch, GREEDY), expected)
    assert torch.equal(model.generate(**batch, generation_config=GREEDY), expected)
    measured = measure_generate(model, batch, max_new_tokens=NEW_TOKENS, generation_config=GREEDY)
    assert torch.equal(measured.sequences, expected)
    assert measured.output_ids == tuple(expected[0, PROMPT_TOKENS:].tolist())


def test_the_images_count(model):
    """Else the comparisons above would prove little."""
    answers = [model.generate_from_batch({**molmo_batch(), "images": images}, GREEDY) for images in two_images()]
    assert not torch.equal(*answers)


def two_images():
    return molmo_batch()["images"], 5 * molmo_batch(1)["images"]


def test_injected_delays_land_in_their_stages(model, monkeypatch):
    clock = FakeClock()
    with monkeypatch.context() as patches:
        delay(patches, clock, model.model.vision_backbone.image_vit, 7)
        delay(patches, clock, model.model.vision_backbone.image_projector, 2)
        delay(patches, clock, blocks_of(model)[0], 3)
        delay(patches, clock, blocks_of(model)[-1], 5)
        delay(patches, clock, model.lm_head, 1)
        timing = measure_generate(
            model, molmo_batch(), max_new_tokens=NEW_TOKENS, generation_config=GREEDY, clock=clock
        ).timing
    assert (timing.source, timing.unseen) == ("measured", None)
    assert (timing.vision_ms, timing.projector_ms) == (7, 2)
    assert timing.llm_prefill_ms == 3 + 5
    assert timing.prefill_ms == timing.ttft_ms == 7 + 2 + 3 + 5 + 1
    assert timing.prefill_rest_ms == 1
    assert (timing.decode_steps, timing.decode_ms) == (5, 5 * (3 + 5 + 1))
    assert timing.total_ms == 18 + 45


def test_both_knobs_are_offered(vlm, model):
    assert find_knob("moe_topk", model, vlm.processor).levels == (2, 1)
    assert find_knob("block_skip", model, vlm.processor).levels == ((), (1,), (1, 2))


@pytest.mark.parametrize("topk", [1, 2])
def test_moe_topk_is_seen_at_the_experts(vlm, model, topk):
    tokens = []
    handles = [
        expert.register_forward_hook(lambda _, given, __: tokens.append(len(given[0])))
        for expert in blocks_of(model)[1].mlp.experts
    ]
    try:
        execution = execute(
            model,
            BatchRequest(batch=molmo_batch(), id="a", processor=vlm.processor),
            setting=Setting(moe_topk=topk),
            max_new_tokens=NEW_TOKENS,
            generation_config=GREEDY,
        )
    finally:
        for handle in handles:
            handle.remove()
    assert sum(tokens) == topk * (PROMPT_TOKENS + NEW_TOKENS - 1)
    assert execution.timing.source == "measured"
    assert execution.answer


@pytest.mark.parametrize("skipped", [(0,), (1,), (2,), (3,), (0, 1), (1, 2)])
def test_skipped_blocks_do_not_run_and_the_others_do_as_if_they_were_not_there(model, skipped):
    batch = molmo_batch()
    full = model.generate_from_batch(batch, GREEDY)
    setting = Setting(block_skip=skipped)
    blocks = {str(i): block for i, block in enumerate(blocks_of(model))}
    with counted_calls(blocks) as calls:
        execution = execute(
            model,
            BatchRequest(batch=batch, id="a"),
            setting=setting,
            max_new_tokens=NEW_TOKENS,
            generation_config=GREEDY,
        )
    assert dict(calls) == {name: NEW_TOKENS for name in blocks if int(name) not in skipped}
    assert execution.timing.source == "measured"
    with applied(setting, model, None):
        with torch.no_grad():
            cache = model(**batch, use_cache=True).past_key_values
        assert [keys.shape[-2] for keys, _ in cache] == [PROMPT_TOKENS] * 4
        assert torch.equal(model.generate_from_batch(batch, GREEDY), greedy_without_cache(model, batch))
    with without_blocks(model, skipped):
        expected = greedy_without_cache(model, batch)
        assert torch.equal(model.generate_from_batch(batch, GREEDY), expected)
    assert execution.output_ids == tuple(expected[0, PROMPT_TOKENS:].tolist())
    assert torch.equal(model.generate_from_batch(batch, GREEDY), full)


class without_blocks:  # noqa: N801 - reads as a statement
    """The model built without some blocks: the list is shorter, nothing stands in for them."""

    def __init__(self, model, skipped):
        self.parts, self.skipped = model.model.transformer, skipped

    def __enter__(self):
        self.all = self.parts.blocks
        self.parts["blocks"] = torch.nn.ModuleList(b for i, b in enumerate(self.all) if i not in self.skipped)

    def __exit__(self, *_):
        self.parts["blocks"] = self.all


def test_a_model_that_raises_leaves_nothing_installed(model, monkeypatch):
    with monkeypatch.context() as patches:
        patches.setattr(model.lm_head, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(
                model,
                BatchRequest(batch=molmo_batch(), id="a"),
                setting=Setting(moe_topk=1, block_skip=(0,)),
                max_new_tokens=NEW_TOKENS,
            )
