"""Parts are found by what flows, in models whose names say nothing; what stays unknown is never measured silently."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from chronostat.measure.clock import FakeClock
from chronostat.measure.colours import Colour, Colours
from chronostat.measure.flow import parts_followed
from chronostat.measure.generate import measure_generate
from chronostat.models.anatomy import anatomy_of, find_anatomy
from stand_ins.observing import Snapshot, delay
from stand_ins.unlisted import (
    AdapterAfter,
    Beside,
    Buffered,
    ByForward,
    ByMethod,
    InTwo,
    OwnGenerate,
    Plain,
    Resampling,
    SecondTower,
    unlisted,
    unlisted_batch,
)

IN_PREFILL = {"total_ms": 7.0, "ttft_ms": 7.0, "prefill_ms": 7.0}
STAGES = (
    "total_ms",
    "ttft_ms",
    "prefill_ms",
    "vision_ms",
    "projector_ms",
    "llm_prefill_ms",
    "prefill_rest_ms",
    "other_ms",
)
CARRIED = (Plain, Beside, Resampling, ByMethod, ByForward, InTwo, Buffered, AdapterAfter)


def follow(model, **options):
    with parts_followed(model):
        return model.generate(**unlisted_batch(), max_new_tokens=2, **options)


def timing_of(model, clock=None):
    return measure_generate(model, unlisted_batch(), max_new_tokens=3, clock=clock or FakeClock()).timing


def late(model, monkeypatch, entry, *, method="forward"):
    """The stages with 7 ms put into the first call of a module."""
    clock = FakeClock()
    delay(monkeypatch, clock, model.get_submodule(entry), 7, method=method, calls=(0,))
    timing = timing_of(model, clock)
    assert (timing.source, timing.unseen) == ("measured", None)
    return {stage: getattr(timing, stage) for stage in STAGES}


def only(**stages_ms):
    return {stage: stages_ms.get(stage, 0.0) for stage in STAGES}


@pytest.mark.parametrize("kind", CARRIED)
def test_what_takes_the_towers_output_is_the_projector_whatever_its_name(kind, monkeypatch):
    model = unlisted(kind)
    assert kind.carrier not in find_anatomy(model).projector
    follow(model)
    assert anatomy_of(model).projector[0] == kind.carrier
    entry, _, method = kind.carrier.rpartition(".")
    where = (entry, method) if method in {"cross", "forward"} else (kind.carrier, "forward")
    assert late(model, monkeypatch, where[0], method=where[1]) == only(**IN_PREFILL, projector_ms=7.0)


@pytest.mark.parametrize("kind", CARRIED)
def test_the_other_stages_stay_where_they_are(kind, monkeypatch):
    model = unlisted(kind)
    follow(model)
    tower = anatomy_of(model).vision[0]
    places = {tower: "vision_ms", "decoder.layers.0": "llm_prefill_ms", "lm_head": "prefill_rest_ms"}
    for place, stage in places.items():
        with monkeypatch.context() as patch:
            assert late(model, patch, place) == only(**IN_PREFILL, **{stage: 7.0})


def test_a_projector_in_two_parts_is_both(monkeypatch):
    model = unlisted(InTwo)
    follow(model)
    assert anatomy_of(model).projector == ("first", "second")
    assert late(model, monkeypatch, "second") == only(**IN_PREFILL, projector_ms=7.0)


def test_what_is_named_like_a_projector_but_works_on_the_merged_sequence_is_none(monkeypatch):
    model = unlisted(AdapterAfter)
    assert find_anatomy(model).projector == ("adapter",)
    follow(model)
    assert anatomy_of(model).projector == ("mlp1",)
    assert late(model, monkeypatch, "adapter") == only(**IN_PREFILL, prefill_rest_ms=7.0)


def test_an_unknown_module_that_takes_the_image_makes_the_stages_doubtful_until_it_is_named():
    model = unlisted(SecondTower)
    follow(model)
    timing = timing_of(model)
    assert (timing.source, timing.prefill_ms) == ("total_only", None)
    assert timing.unseen == (
        'fovea took the image and is no known part; name it with model.layout or --layout, as vision = "fovea", with '
        "all other parts of the kind"
    )
    anatomy_of(model, {"vision": ("vision_tower", "fovea"), "projector": "mlp1"})
    follow(model)
    assert timing_of(model).source == "measured"


def test_a_text_alone_is_not_doubted_for_what_an_image_has_shown():
    model = unlisted(SecondTower)
    follow(model)
    batch = {"input_ids": unlisted_batch()["input_ids"]}
    assert measure_generate(model, batch, max_new_tokens=2, clock=FakeClock()).timing.source == "measured"


def test_work_outside_every_stage_is_named_with_the_line_that_mends_it(monkeypatch):
    model = unlisted(OwnGenerate)
    timing = timing_of(model)
    assert (timing.source, timing.other_ms) == ("total_only", None)
    assert timing.unseen == (
        "mlp1 ran before the first token outside every stage; name what carries the image to the language model, as "
        'model.layout.projector = "mlp1" or with --layout'
    )
    anatomy_of(model, {"projector": "mlp1"})
    assert late(model, monkeypatch, "mlp1") == only(**IN_PREFILL, projector_ms=7.0)


@pytest.mark.parametrize(
    ("place", "method", "stage"),
    [
        ("vision_model", "forward", "vision_ms"),
        ("mlp1", "forward", "projector_ms"),
        ("", "shuffle", "prefill_rest_ms"),
        ("language_model.model.embed_tokens", "forward", "prefill_rest_ms"),
        ("language_model.model.layers.0", "forward", "llm_prefill_ms"),
        ("language_model.lm_head", "forward", "prefill_rest_ms"),
    ],
)
def test_an_own_generate_without_the_librarys_is_measured(monkeypatch, place, method, stage):
    model = unlisted(OwnGenerate)
    follow(model)
    assert anatomy_of(model).encode == ("extract_feature",)
    assert late(model, monkeypatch, place, method=method) == only(**IN_PREFILL, **{stage: 7.0})


def test_decode_steps_of_an_own_generate_are_decode(monkeypatch):
    model, clock = unlisted(OwnGenerate), FakeClock()
    follow(model)
    delay(monkeypatch, clock, model.language_model.model.layers[1], 7, calls=(1, 2))
    timing = timing_of(model, clock)
    assert (timing.new_tokens, timing.decode_ms, timing.decode_ms_per_token, timing.prefill_ms) == (3, 14, 7, 0)


@pytest.mark.parametrize("kind", [*CARRIED, SecondTower, OwnGenerate])
def test_following_changes_no_answer_and_leaves_nothing(kind):
    model = unlisted(kind)
    plain = model.generate(**unlisted_batch(), max_new_tokens=2)
    before = Snapshot(model)
    assert torch.equal(follow(model), plain)
    before.assert_equals(model)
    assert "generate" not in vars(model)
    assert _get_current_dispatch_mode() is None


def test_a_call_that_raises_teaches_nothing_and_leaves_nothing(monkeypatch):
    model = unlisted(Plain)
    before, known = Snapshot(model), anatomy_of(model)

    def broken(*_, **__):
        raise RuntimeError("no kernel")

    with monkeypatch.context() as patch:
        patch.setattr(model.mlp1, "forward", broken)
        with pytest.raises(RuntimeError, match="no kernel"):
            follow(model)
    assert anatomy_of(model) == known
    before.assert_equals(model)
    assert _get_current_dispatch_mode() is None


def test_following_ends_at_the_first_decoder_block(monkeypatch):
    model, followed = unlisted(Plain), []

    def noting(original):
        def noted(*args, **kwargs):
            followed.append(_get_current_dispatch_mode() is not None)
            return original(*args, **kwargs)

        return noted

    for module in (model.vision_tower, model.decoder.layers[0]):
        monkeypatch.setattr(module, "forward", noting(module.forward))
    follow(model)
    assert followed == [True, False, False]  # the tower; the block in the prefill and in the decode step


@torch.library.custom_op("chronostat_tests::fill", mutates_args={"buffer"})
def fill(buffer: torch.Tensor, values: torch.Tensor) -> None:
    buffer.copy_(values)


def test_colours_follow_what_is_written_in_place_through_views_and_by_kernels_of_ones_own():
    colours, image, text = Colours(), torch.ones(2), torch.ones(2)
    colours.give(image, Colour.IMAGE)
    colours.give(text, Colour.TEXT)
    with colours:
        in_place, by_kernel, apart = torch.zeros(4), torch.zeros(2), torch.zeros(2)
        in_place[:2] = image * 2
        fill(by_kernel, image)
        both = torch.cat([in_place, text]).reshape(2, 3)
    found = [colours.of(each) for each in (in_place, by_kernel, apart, both, [apart, {"a": text}])]
    assert found == [Colour.IMAGE, Colour.IMAGE, Colour.NOTHING, Colour.IMAGE | Colour.TEXT, Colour.TEXT]


def test_the_place_of_a_tensor_that_is_gone_gives_no_colour_to_the_next():
    colours = Colours()
    for _ in range(50):
        gone = torch.ones(3)
        assert colours.of(gone) == Colour.NOTHING
        colours.give(gone, Colour.IMAGE)
        del gone


def test_a_compiled_module_beside_the_parts_is_no_matter():
    model = unlisted(AdapterAfter)
    plain = model.generate(**unlisted_batch(), max_new_tokens=2)
    model.adapter.compile(backend="eager")
    assert torch.equal(follow(model), plain)
    assert anatomy_of(model).projector == ("mlp1",)


def test_what_layout_names_stays(monkeypatch):
    model = unlisted(InTwo)
    anatomy_of(model, {"projector": "second"})
    follow(model)
    assert anatomy_of(model).projector == ("second",)


def test_a_method_can_be_named_by_layout(monkeypatch):
    model = unlisted(ByMethod)
    anatomy_of(model, {"projector": "bridge.cross"})
    assert late(model, monkeypatch, "bridge", method="cross") == only(**IN_PREFILL, projector_ms=7.0)


def test_only_the_first_call_inside_is_followed():
    model = unlisted(Plain)
    with parts_followed(model):
        for _ in range(2):
            model.generate(**unlisted_batch(), max_new_tokens=2)
    assert anatomy_of(model).projector == ("mlp1",)


def test_a_request_without_an_image_teaches_nothing():
    model = unlisted(AdapterAfter)
    with parts_followed(model):
        model.generate(unlisted_batch()["input_ids"], max_new_tokens=2)
    assert anatomy_of(model).projector == ("adapter",)


class ForSound(Plain):
    """Has a part that no image goes through."""

    def see(self):
        super().see()
        self.listening = nn.Linear(2, 2)


def test_modules_that_do_not_run_are_no_doubt():
    model = unlisted(ForSound)
    assert timing_of(model).source == "measured"
