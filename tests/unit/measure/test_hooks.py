"""Delays of known length land in their stage and nowhere else; what was not seen is never a short time.

The fake clock stands still except where a delay is put, so every assertion is an equality.
"""

import contextlib
import dataclasses

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from chronostat.knobs.registry import applied
from chronostat.measure.clock import FakeClock
from chronostat.measure.generate import measure_generate
from chronostat.models.anatomy import anatomy_of
from chronostat.records import Setting
from stand_ins.molmo_like import MolmoLike, molmo_batch, molmo_like
from stand_ins.observing import delay

NEW_TOKENS = 4
STAGES = (
    "total_ms",
    "ttft_ms",
    "prefill_ms",
    "vision_ms",
    "projector_ms",
    "llm_prefill_ms",
    "prefill_rest_ms",
    "decode_ms",
    "other_ms",
)
IN_PREFILL = {"total_ms": 7, "ttft_ms": 7, "prefill_ms": 7}


@pytest.fixture
def clock():
    return FakeClock()


def measured(model, batch, clock, **options):
    options.setdefault("max_new_tokens", NEW_TOKENS)
    return measure_generate(model, batch, clock=clock, **options).timing


def stages(timing):
    return {name: getattr(timing, name) for name in STAGES}


def only(**stages_ms):
    """All stages 0 except the given ones."""
    return {name: float(stages_ms.get(name, 0)) for name in STAGES}


@pytest.fixture
def slow(bundled, monkeypatch, clock):
    """Puts 7 ms into a part of the bundled model, by module path, at the given calls."""

    def put(path, calls=(0,), *, method="forward", ms=7):
        delay(monkeypatch, clock, bundled.model.get_submodule(path), ms, method=method, calls=calls)

    return put


BLOCKS = "model.language_model.layers"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.vision_tower", only(**IN_PREFILL, vision_ms=7)),
        ("model.vision_tower.encoder.layer.0", only(**IN_PREFILL, vision_ms=7)),
        ("model.vision_tower.layernorm", only(**IN_PREFILL, vision_ms=7)),
        ("model.multi_modal_projector", only(**IN_PREFILL, projector_ms=7)),
        (f"{BLOCKS}.0", only(**IN_PREFILL, llm_prefill_ms=7)),
        (f"{BLOCKS}.3", only(**IN_PREFILL, llm_prefill_ms=7)),
        (f"{BLOCKS}.7", only(**IN_PREFILL, llm_prefill_ms=7)),
        ("model.language_model.embed_tokens", only(**IN_PREFILL, prefill_rest_ms=7)),
        ("model.language_model.norm", only(**IN_PREFILL, prefill_rest_ms=7)),
        ("lm_head", only(**IN_PREFILL, prefill_rest_ms=7)),
    ],
)
def test_a_delay_before_the_first_token_lands_in_its_stage(bundled, demo_batch, clock, slow, path, expected):
    slow(path)
    assert stages(measured(bundled.model, demo_batch, clock)) == expected


def moved(model, *, drop_first=0, drop_last=0, before=(), after=()):
    """The decoder blocks as a recorder would see them whose boundaries are wrong."""
    blocks = [model.get_submodule(f"{BLOCKS}.{index}") for index in range(drop_first, 8 - drop_last)]
    return [*map(model.get_submodule, before), *blocks, *map(model.get_submodule, after)]


@pytest.mark.parametrize(
    ("wrong", "path", "expected"),
    [
        ({"drop_first": 1}, f"{BLOCKS}.0", only(**IN_PREFILL, llm_prefill_ms=7)),
        ({"drop_last": 1}, f"{BLOCKS}.7", only(**IN_PREFILL, llm_prefill_ms=7)),
        ({"before": ["model.language_model.embed_tokens"]}, "model.language_model.embed_tokens", None),
        ({"after": ["model.language_model.norm"]}, "model.language_model.norm", None),
    ],
    ids=["starts one block late", "ends one block early", "starts one module early", "ends one module late"],
)
def test_the_delays_above_notice_a_boundary_that_moved_by_one_block(
    bundled, demo_batch, clock, slow, monkeypatch, wrong, path, expected
):
    expected = expected or only(**IN_PREFILL, prefill_rest_ms=7)
    slow(path)
    assert stages(measured(bundled.model, demo_batch, clock)) == expected
    monkeypatch.undo()
    slow(path)
    monkeypatch.setattr("chronostat.measure.hooks.running_blocks", lambda model, _: moved(model, **wrong))
    assert stages(measured(bundled.model, demo_batch, clock)) != expected


@pytest.mark.parametrize(
    ("part", "wrong", "path"),
    [
        ("vision", "model.vision_tower.encoder", "model.vision_tower.layernorm"),
        ("vision", "model.vision_tower.encoder.layer.1", "model.vision_tower.encoder.layer.0"),
        ("projector", "model.multi_modal_projector.linear_2", "model.multi_modal_projector.linear_1"),
    ],
)
def test_the_delays_above_notice_a_part_that_was_found_too_small(
    bundled, demo_batch, clock, slow, monkeypatch, part, wrong, path
):
    slow(path)
    right = stages(measured(bundled.model, demo_batch, clock))
    assert right[f"{part}_ms"] == 7
    monkeypatch.undo()
    slow(path)
    mistaken = dataclasses.replace(anatomy_of(bundled.model), **{part: (wrong,)})
    monkeypatch.setattr("chronostat.measure.call.anatomy_of", lambda _: mistaken)
    assert stages(measured(bundled.model, demo_batch, clock)) != right


@pytest.mark.parametrize("path", [f"{BLOCKS}.0", f"{BLOCKS}.7", "lm_head", ""])
@pytest.mark.parametrize("step", [1, 3])
def test_a_delay_in_a_decode_step_lands_in_decode(bundled, demo_batch, clock, slow, path, step):
    slow(path, calls=(step,))
    timing = measured(bundled.model, demo_batch, clock)
    assert stages(timing) == only(total_ms=7, decode_ms=7)
    assert timing.decode_steps == 3
    assert timing.decode_ms_per_token == 7 / 3  # n - 1 = 3 steps for 4 tokens


def test_glue_between_vision_and_forward_is_in_prefill(bundled, demo_batch, clock, slow):
    slow("model", method="get_image_features")
    assert stages(measured(bundled.model, demo_batch, clock)) == only(**IN_PREFILL, prefill_rest_ms=7)


def test_set_up_before_the_first_forward_is_other(bundled, demo_batch, clock, slow):
    slow("", method="prepare_inputs_for_generation")
    expected = only(total_ms=7, ttft_ms=7, other_ms=7)
    assert stages(measured(bundled.model, demo_batch, clock)) == expected


def test_sampling_is_in_ttft_and_in_decode_but_not_in_prefill(bundled, demo_batch, clock, monkeypatch):
    delay(monkeypatch, clock, torch, 7, method="multinomial")
    config = GenerationConfig(do_sample=True, min_new_tokens=NEW_TOKENS, pad_token_id=0)
    timing = measured(bundled.model, demo_batch, clock, generation_config=config)
    assert timing.new_tokens == 4
    assert stages(timing) == only(total_ms=28, ttft_ms=7, decode_ms=21, other_ms=7)  # 4 draws, the first in ttft


def test_all_stages_together_sum_up(bundled, demo_batch, clock, slow):
    slow("", method="prepare_inputs_for_generation", ms=1)
    slow("model.vision_tower", ms=2)
    slow("model.multi_modal_projector", ms=4)
    slow(f"{BLOCKS}.0", ms=8)
    slow(f"{BLOCKS}.7", ms=16)
    slow("lm_head", calls=(0, 1, 2, 3), ms=32)
    assert stages(measured(bundled.model, demo_batch, clock)) == {
        "total_ms": 159,  # 1 + 2 + 4 + 8 + 16 + 4 * 32
        "ttft_ms": 63,  # 1 + 2 + 4 + 8 + 16 + 32
        "prefill_ms": 62,  # without the set-up
        "vision_ms": 2,
        "projector_ms": 4,
        "llm_prefill_ms": 24,  # 8 + 16
        "prefill_rest_ms": 32,
        "decode_ms": 96,  # 3 * 32
        "other_ms": 1,  # 159 - 62 - 96
    }


def test_chunks_of_the_prefill_are_summed(bundled, demo_batch, clock, slow):
    tokens = demo_batch["input_ids"].shape[1]
    chunks = -(-tokens // 100)
    assert chunks == 3
    slow(f"{BLOCKS}.0", calls=None)
    slow("lm_head", calls=None, ms=1)
    config = GenerationConfig(prefill_chunk_size=100, min_new_tokens=NEW_TOKENS, pad_token_id=0)
    timing = measured(bundled.model, demo_batch, clock, generation_config=config)
    assert timing.llm_prefill_ms == 21  # 3 chunks of 7
    assert timing.prefill_ms == 24  # and their heads
    assert timing.decode_ms == 24  # 3 steps of 7 + 1


@pytest.mark.parametrize(("skipped", "first", "last"), [((0,), 1, 7), ((7,), 0, 6), ((0, 1, 6, 7), 2, 5)])
def test_skipped_blocks_move_the_boundaries_to_those_that_run(bundled, demo_batch, clock, slow, skipped, first, last):
    with applied(Setting(block_skip=skipped), bundled.model, bundled.processor):
        slow(f"{BLOCKS}.{first}", ms=7)
        slow(f"{BLOCKS}.{last}", ms=5)
        timing = measured(bundled.model, demo_batch, clock)
    assert timing.llm_prefill_ms == timing.prefill_ms == timing.total_ms == 12


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.vision_backbone", only(**IN_PREFILL, vision_ms=7)),
        ("model.vision_backbone.image_vit", only(**IN_PREFILL, vision_ms=7)),
        ("model.vision_backbone.image_pooling_2d", only(**IN_PREFILL, vision_ms=7)),
        ("model.vision_backbone.image_projector", only(**IN_PREFILL, projector_ms=7)),
        ("model.transformer.blocks.0", only(**IN_PREFILL, llm_prefill_ms=7)),
        ("model.transformer.blocks.3", only(**IN_PREFILL, llm_prefill_ms=7)),
        ("model.transformer.ln_f", only(**IN_PREFILL, prefill_rest_ms=7)),
        ("lm_head", only(**IN_PREFILL, prefill_rest_ms=7)),
    ],
)
def test_vision_inside_the_forward_is_taken_apart_likewise(clock, monkeypatch, path, expected):
    model = molmo_like()
    delay(monkeypatch, clock, model.get_submodule(path), 7, calls=(0,))
    assert stages(measured(model, molmo_batch(), clock)) == expected


def test_image_work_after_the_first_token_belongs_to_decode(clock, monkeypatch):
    model = molmo_like()
    delay(monkeypatch, clock, model.model.vision_backbone, 7)
    without_cache = GenerationConfig(use_cache=False, pad_token_id=0)  # every step encodes the image again
    timing = measured(model, molmo_batch(), clock, generation_config=without_cache)
    assert stages(timing) == only(total_ms=28, ttft_ms=7, prefill_ms=7, vision_ms=7, decode_ms=21)  # 3 steps of 7


def call_past_hooks(monkeypatch, module):
    """Make a module's caller use ``module.forward()``, so that its hooks stay silent."""
    monkeypatch.setattr(module, "_call_impl", module.forward)


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("model.vision_backbone", "vision"),
        ("model.vision_backbone.image_projector", "projector"),
        ("model.transformer.blocks.0", "decoder blocks"),
        ("model.transformer.blocks.3", "decoder blocks"),
    ],
)
def test_a_part_whose_hooks_do_not_fire_leaves_only_the_total(clock, monkeypatch, path, stage):
    model = molmo_like()
    plain = model.generate(**molmo_batch(), max_new_tokens=NEW_TOKENS)
    delay(monkeypatch, clock, model.get_submodule(path), 7, calls=(0,))
    call_past_hooks(monkeypatch, model.get_submodule(path))
    result = measure_generate(model, molmo_batch(), max_new_tokens=NEW_TOKENS, clock=clock)
    timing = result.timing
    assert (timing.source, timing.total_ms, timing.new_tokens, timing.decode_steps) == ("total_only", 7, 4, 3)
    assert timing.unseen == f"not seen: {stage}"
    assert all(getattr(timing, name) is None for name in STAGES if name != "total_ms")
    assert torch.equal(result.sequences, plain)


def test_one_of_two_projectors_whose_hooks_do_not_fire_leaves_only_the_total(clock, monkeypatch):
    model = molmo_like()
    pooling, projector = "model.vision_backbone.image_pooling_2d", "model.vision_backbone.image_projector"
    anatomy_of(model, {"projector": (pooling, projector)})
    assert measured(model, molmo_batch(), clock).source == "measured"
    call_past_hooks(monkeypatch, model.get_submodule(pooling))  # it has no parts that would be noticed
    timing = measured(model, molmo_batch(), clock)
    assert (timing.source, timing.unseen) == ("total_only", "not seen: projector")


def test_a_users_own_hook_is_part_of_its_module(clock):
    model = molmo_like()
    tower = model.model.vision_backbone
    tower.register_forward_pre_hook(lambda *_: clock.advance_ms(3))
    tower.register_forward_hook(lambda *_: clock.advance_ms(4))
    assert stages(measured(model, molmo_batch(), clock)) == only(**IN_PREFILL, vision_ms=7)


def test_of_nested_calls_of_a_stage_only_the_outermost_is_one(clock, monkeypatch):
    model = molmo_like()
    anatomy_of(model, {"vision": ("model.vision_backbone", "model.vision_backbone.image_vit"), "projector": ()})
    delay(monkeypatch, clock, model.model.vision_backbone.image_vit, 7, calls=(0,))
    delay(monkeypatch, clock, model.model.vision_backbone.image_projector, 3, calls=(0,))
    seen = measure_generate(model, molmo_batch(), max_new_tokens=2, clock=clock)
    assert seen.waterfall.spans_ms["vision"] == ((0, 10),)
    assert seen.timing.vision_ms == 10


class TriesTwice(MolmoLike):
    """Catches what its vision tower raises, and calls it again."""

    def forward(self, input_ids, images=None, image_masks=None, image_input_idx=None, **kwargs):
        if images is not None:
            with contextlib.suppress(TypeError):
                self.model.vision_backbone(images, None)
        return super().forward(input_ids, images, image_masks, image_input_idx, **kwargs)


def test_a_stage_that_raised_and_was_tried_again_took_the_time_of_both(clock, monkeypatch):
    model = molmo_like(TriesTwice)
    delay(monkeypatch, clock, model.model.vision_backbone, 7, calls=(0, 1))
    timing = measured(model, molmo_batch(), clock)
    assert (timing.source, timing.vision_ms, timing.prefill_ms) == ("measured", 14, 14)


class TwoTowerCalls(MolmoLike):
    """Calls its vision tower twice before the first token, the second time past the hooks."""

    def forward(self, input_ids, images=None, image_masks=None, image_input_idx=None, **kwargs):
        if images is not None:
            self.model.vision_backbone.forward(images, image_masks)
        return super().forward(input_ids, images, image_masks, image_input_idx, **kwargs)


def test_a_stage_that_was_seen_less_often_than_it_ran_is_no_short_time(clock):
    timing = measured(molmo_like(TwoTowerCalls), molmo_batch(), clock)
    assert (timing.source, timing.unseen) == ("total_only", "not seen: vision")


@pytest.mark.parametrize("index", [0, 7])
def test_blocks_that_fire_in_only_some_chunks_are_no_short_time(bundled, demo_batch, clock, monkeypatch, index):
    block = bundled.model.get_submodule(f"{BLOCKS}.{index}")
    calls = []

    def sometimes(*args, **kwargs):
        calls.append(1)
        return block.forward(*args, **kwargs) if len(calls) == 2 else nn.Module._call_impl(block, *args, **kwargs)

    monkeypatch.setattr(block, "_call_impl", sometimes)
    config = GenerationConfig(prefill_chunk_size=100, min_new_tokens=NEW_TOKENS, pad_token_id=0)
    timing = measured(bundled.model, demo_batch, clock, generation_config=config)
    assert timing.source == "total_only"
    assert "decoder blocks" in timing.unseen


class OwnLoop(MolmoLike):
    """Generates in a loop of its own that asks no StoppingCriteria."""

    def generate(self, input_ids, max_new_tokens, stopping_criteria=None, **batch):
        for _ in range(max_new_tokens):
            logits = self(input_ids, **batch).logits
            input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], dim=1)
        return input_ids


def test_a_generate_that_asks_no_stopping_criteria_leaves_only_the_total(clock):
    timing = measured(molmo_like(OwnLoop), molmo_batch(), clock)
    assert (timing.source, timing.new_tokens, timing.decode_steps) == ("total_only", 4, 3)
    assert timing.unseen == "not seen: 0 token marks for 4 tokens"


class BlocksBesideTheForward(MolmoLike):
    """Runs its decoder blocks once more, where no forward of the model is open."""

    def generate(self, input_ids, **batch):
        hidden = self.model.transformer["wte"](input_ids)
        for block in self.model.transformer["blocks"]:
            hidden, _ = block(hidden, None)
        return super().generate(input_ids=input_ids, **batch)


class AsksEverySecondToken(OwnLoop):
    """Asks its stopping criteria too seldom."""

    def generate(self, input_ids, max_new_tokens, stopping_criteria=None, **batch):
        for _ in range(max_new_tokens // 2):
            input_ids = super().generate(input_ids, 2, **batch)
            stopping_criteria(input_ids, None)
        return input_ids


def test_a_token_without_a_mark_leaves_only_the_total(clock):
    batch = {"input_ids": molmo_batch()["input_ids"]}
    timing = measured(molmo_like(AsksEverySecondToken), batch, clock)
    assert timing.source == "total_only"
    assert "2 token marks for" in timing.unseen


def test_blocks_that_run_outside_the_prefill_forward_leave_only_the_total(clock, monkeypatch):
    model = molmo_like(BlocksBesideTheForward)
    delay(monkeypatch, clock, model.get_submodule("model.transformer.blocks.0"), 7, calls=(0, 1))
    timing = measured(model, molmo_batch(), clock)
    assert timing.source == "total_only"  # else llm_prefill_ms were 14, and prefill_ms 7
    assert "decoder blocks ran 7.000 ms outside the prefill forward" in timing.unseen


def test_a_model_without_a_vision_part_is_measured_without_one(clock):
    model = molmo_like()
    batch = {"input_ids": molmo_batch()["input_ids"]}
    timing = measured(model, batch, clock)
    assert timing.source == "measured"
    assert (timing.vision_ms, timing.projector_ms, timing.prefill_ms) == (None, None, 0)


def test_the_anatomy_decides_what_must_be_seen():
    anatomy = anatomy_of(molmo_like())
    assert (anatomy.vision, anatomy.projector) == (
        ("model.vision_backbone",),
        ("model.vision_backbone.image_projector",),
    )
