"""``generate()`` with fewer image tokens, against prompts that are put together by hand."""

import pytest
import torch
from torch import nn
from transformers import Blip2Config, Blip2ForConditionalGeneration

from chronostat.engine import graphed
from chronostat.errors import KnobError
from chronostat.knobs.registry import applied, find_knob
from chronostat.measure.generate import measure_generate
from chronostat.measure.work import counted_work
from chronostat.records import Setting
from chronostat.tokens.methods import METHODS
from chronostat.tokens.selection import Picture
from stand_ins.observing import Snapshot
from stand_ins.windowed import qwen2_5, two_pictures
from zoo.build import ZooModel, build

NEW_TOKENS = 4
ANSWER = {
    "max_new_tokens": NEW_TOKENS,
    "min_new_tokens": NEW_TOKENS,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def logits_under(zoo, value):
    with applied(Setting(image_keep=value), zoo.model, None):
        return torch.stack(zoo.model.generate(**zoo.batch, **zoo.options, **ANSWER).logits)


def kept_by(method, features, grid):
    """Positions among the image tokens, and the features that stand there."""
    picture = Picture(index=0, together=1, features=features, grid=grid)
    selection = METHODS[method](None, None).choose(picture, 2)
    return selection.tokens, selection.of(features)


@torch.no_grad()
def by_hand(zoo, tokens, kept):
    """Embeddings of the prompt with some image features, and the places of the prompt that are left."""
    ids = zoo.batch["input_ids"]
    places = (ids[0] == 100).nonzero()[:, 0]
    left_out = set(places.tolist()) - set(places[tokens].tolist())
    columns = torch.tensor([place for place in range(ids.shape[1]) if place not in left_out])
    embeddings = zoo.model.get_input_embeddings()(ids[:, columns])
    embeddings[0, torch.isin(columns, places)] = kept
    return embeddings, columns


@pytest.mark.parametrize("method", ["pool", "stride", "norm"])
def test_the_answer_is_that_of_a_prompt_with_the_kept_features_alone(method):
    zoo = build("llava")
    features = zoo.model.get_image_features(zoo.batch["pixel_values"]).pooler_output[0]
    embeddings, _ = by_hand(zoo, *kept_by(method, features, (2, 2)))
    expected = torch.stack(zoo.model.generate(inputs_embeds=embeddings, **ANSWER).logits)
    assert torch.equal(logits_under(zoo, f"{method}:2"), expected)
    assert torch.equal(logits_under(zoo, f"{method}:0.5"), expected)


@torch.no_grad()
@pytest.mark.parametrize("method", ["pool", "norm"])
@pytest.mark.parametrize("name", ["qwen2_vl", "glm4v", "hunyuan_vl"])
def test_each_kept_token_keeps_its_own_position_in_the_image(name, method):
    zoo = build(name)
    model, batch = zoo.model, zoo.batch
    encoded = model.get_image_features(batch["pixel_values"], image_grid_thw=batch["image_grid_thw"])
    features = encoded.pooler_output[0]
    grid = (1, 8) if name == "hunyuan_vl" else (2, 2)  # an end to each row among them
    tokens, kept = kept_by(method, features, grid)
    embeddings, columns = by_hand(zoo, tokens, kept)
    grids = {key: batch[key] for key in ("mm_token_type_ids", "image_grid_thw")}
    positions, _ = model.model.get_rope_index(batch["input_ids"], **grids)
    following = positions.max() + 1 + torch.arange(NEW_TOKENS)
    seen = logits_under(zoo, f"{method}:2")
    for step in range(NEW_TOKENS):
        places = torch.cat([positions[:, :, columns], following[:step].expand(len(positions), 1, step)], dim=-1)
        logits = model(inputs_embeds=embeddings, position_ids=places, use_cache=False).logits[:, -1]
        torch.testing.assert_close(seen[step], logits, rtol=1e-4, atol=1e-5)
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(seen[step].argmax(-1)[None])], dim=1)


@torch.no_grad()
def test_each_of_several_pictures_gets_its_part():
    model, batch = qwen2_5(), two_pictures()
    features = model.get_image_features(batch["pixel_values"], image_grid_thw=batch["image_grid_thw"]).pooler_output
    longest = [
        each.norm(dim=-1).topk(count).indices.sort().values for each, count in zip(features, (8, 5), strict=True)
    ]
    tokens = torch.cat([longest[0], 24 + longest[1]])  # 13 of 39: a third of each
    zoo = ZooModel("qwen2_5_vl", model, batch, {})
    embeddings, columns = by_hand(zoo, tokens, torch.cat(features)[tokens])
    grids = {key: batch[key] for key in ("mm_token_type_ids", "image_grid_thw")}
    positions, _ = model.model.get_rope_index(batch["input_ids"], **grids)
    expected = model(inputs_embeds=embeddings, position_ids=positions[:, :, columns], use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits_under(zoo, "norm:13")[0], expected, rtol=1e-4, atol=1e-5)


def test_features_for_several_blocks_are_left_out_alike():
    zoo = build("qwen3_vl")
    seen = {}
    stages = zoo.model.model

    def note(_, args, kwargs):
        if kwargs.get("deepstack_visual_embeds") is not None:
            seen["deep"] = kwargs["deepstack_visual_embeds"]
            seen["places"] = kwargs["visual_pos_masks"]

    hook = stages.language_model.register_forward_pre_hook(note, with_kwargs=True)
    logits_under(zoo, "norm:2")
    hook.remove()
    batch = zoo.batch
    encoded = stages.get_image_features(batch["pixel_values"], image_grid_thw=batch["image_grid_thw"])
    tokens, _ = kept_by("norm", encoded.pooler_output[0], (2, 2))
    assert int(seen["places"].sum()) == 2
    for deep, whole in zip(seen["deep"], encoded.deepstack_features, strict=True):
        rows = whole if isinstance(whole, torch.Tensor) else torch.cat(list(whole))  # a list from transformers 5.2x on
        torch.testing.assert_close(deep, rows[tokens])


@pytest.mark.parametrize("value", ["pool:0.5", "attention:2", "prompt:0.25"])
def test_the_model_is_as_it_was_afterwards(value):
    zoo = build("llava")
    full = logits_under(zoo, 1.0)
    before = Snapshot(zoo.model)
    assert not torch.equal(logits_under(zoo, value), full)
    before.assert_equals(zoo.model)
    assert torch.equal(logits_under(zoo, 1.0), full)


def test_the_model_is_as_it_was_when_it_raises(monkeypatch):
    zoo = build("llava")
    logits_under(zoo, 1.0)
    before = Snapshot(zoo.model)

    def fail(_):
        raise RuntimeError

    with monkeypatch.context() as broken:
        broken.setattr(zoo.model.lm_head, "forward", fail)
        with pytest.raises(RuntimeError):
            logits_under(zoo, "attention:0.5")
    before.assert_equals(zoo.model)


def test_attention_leaves_the_tower_its_fast_attention(monkeypatch):
    zoo = build("llava")
    fast, calls = nn.functional.scaled_dot_product_attention, []

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return fast(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    monkeypatch.setattr("chronostat.tokens.listening._FUSED", fast)
    logits_under(zoo, "stride:2")
    plain, calls[:] = list(calls), []
    logits_under(zoo, "attention:2")
    assert calls == plain
    assert zoo.model.config.vision_config._attn_implementation == "sdpa"


def test_every_stage_is_seen_and_the_work_is_less():
    zoo = build("llava")
    logits_under(zoo, 1.0)
    with counted_work(zoo.model) as works:
        measured = {}
        for value in (1.0, "attention:1"):
            with applied(Setting(image_keep=value), zoo.model, None):
                measured[value] = measure_generate(zoo.model, zoo.batch, max_new_tokens=2)
    full, fewer = works
    assert (full.image_tokens, fewer.image_tokens) == (4, 1)
    assert full.vision_inputs == fewer.vision_inputs
    assert fewer.prefill_inputs < full.prefill_inputs
    assert [each.timing.source for each in measured.values()] == ["measured", "measured"]
    assert all(len(each.output_ids) == 2 for each in measured.values())


def test_nothing_is_kept_for_gradients():
    """Recording a graph of the tower would be time and memory that the setting is charged with."""
    zoo, seen = build("llava"), []
    project = zoo.model.model.multi_modal_projector.register_forward_hook(lambda *call: seen.append(call[-1]))
    assert torch.is_grad_enabled()
    logits_under(zoo, "pool:2")
    project.remove()
    assert [features.requires_grad for features in seen] == [False]


def test_choosing_is_inside_the_prefill(monkeypatch):
    """A method that takes 50 ms is seen in ``prefill_ms``, and in no stage of its own."""
    import time

    zoo = build("llava")
    logits_under(zoo, 1.0)
    choose = METHODS["stride"].choose

    def slow(self, picture, count):
        time.sleep(0.05)
        return choose(self, picture, count)

    monkeypatch.setattr(METHODS["stride"], "choose", slow)
    with applied(Setting(image_keep="stride:2"), zoo.model, None):
        timing = measure_generate(zoo.model, zoo.batch, max_new_tokens=2).timing
    assert timing.prefill_ms > 50
    assert timing.prefill_rest_ms > 50


def test_graphs_replay_the_shorter_prompt():
    zoo = build("llava")
    eager = {value: logits_under(zoo, value).argmax(-1)[:, 0].tolist() for value in (1.0, "norm:2")}
    with graphed(zoo.model) as engine:
        for _ in range(2):
            for value, expected in eager.items():
                with applied(Setting(image_keep=value), zoo.model, None):
                    measured = measure_generate(zoo.model, zoo.batch, max_new_tokens=NEW_TOKENS)
                assert measured.output_ids == tuple(expected)
                assert (engine.last.way, engine.last.prompt_tokens) == ("graph", 12 if value == 1.0 else 10)
        assert engine.last.captured == 0


def test_text_alone_is_left_as_it_is():
    zoo = build("llava")
    ids = torch.tensor([[1, 5, 6, 30, 31]])
    plain = zoo.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    with applied(Setting(image_keep="pool:1"), zoo.model, None):
        assert torch.equal(zoo.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False), plain)
        assert torch.equal(zoo.model.generate(ids, max_new_tokens=3, do_sample=False), plain)


def test_more_than_one_request_is_refused():
    zoo = build("llava")
    twice = {name: torch.cat([value, value]) for name, value in zoo.batch.items()}
    with (
        applied(Setting(image_keep="pool:1"), zoo.model, None),
        pytest.raises(KnobError, match=r"a batch of 2 requests; pass one, input_ids of shape \[1, T\]"),
    ):
        zoo.model.generate(**twice, max_new_tokens=1)


def test_a_model_that_encodes_images_inside_its_own_generate():
    """BLIP-2: its features leave at the exit of its projector."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "model_type": "opt",
        "vocab_size": 128,
        "word_embed_proj_dim": 16,
        "ffn_dim": 16,
        "max_position_embeddings": 64,
    }
    config = Blip2Config(
        vision_config={**small, "image_size": 16, "patch_size": 8},
        qformer_config={**small, "encoder_hidden_size": 16, "vocab_size": 128},
        text_config={**small, **text, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None},
        num_query_tokens=4,
        image_token_index=100,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    for module in (model, model.language_model):
        module.generation_config.eos_token_id = None
    ids = torch.tensor([[100, 100, 100, 100, 1, 5, 6]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 16, 16)}
    with torch.no_grad():
        features = model.get_image_features(batch["pixel_values"]).pooler_output
        embeddings = model.get_input_embeddings()(ids[:, 2:])
    tokens, kept = kept_by("norm", features[0], (1, 4))
    embeddings[0, :2] = kept
    new = model.language_model.generate(inputs_embeds=embeddings, max_new_tokens=3, do_sample=False)
    expected = torch.cat([ids[:, 2:], new], dim=1)
    knob = find_knob("image_keep", model, None)
    assert knob.reads("norm:0.5", 4) == len(tokens)
    with pytest.raises(KnobError, match="legal: the methods pool, stride, norm, prompt; qformer of Blip2"):
        knob.check("attention:0.5")
    with applied(Setting(image_keep="norm:0.5"), model, None), counted_work(model) as works:
        answer = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert torch.equal(answer, expected)
    assert works[0].forwards == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blip", "names no image placeholder"),
        ("mllama", r"has no get_image_features\(\), so its image features do not take the places of embeddings"),
    ],
)
def test_other_models_are_refused_by_name(name, reason):
    with pytest.raises(KnobError, match=f"image_keep: .*{reason}"):
        find_knob("image_keep", build(name).model, None)
