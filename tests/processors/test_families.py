"""The real processors of many families: tokens asked for and read, what enters the vision tower, nothing left over."""

import pytest
import torch
from benchmarks.processors.families import FAMILIES

from chronostat.errors import DataError, KnobError
from chronostat.execution.execute import execute
from chronostat.knobs.registry import applied, find_knob, find_space
from chronostat.measure.work import counted_work
from chronostat.models.prepare import count_image_tokens, prepare
from chronostat.models.weights import first_difference, state_of, weights_checksum, without_memory
from chronostat.records import Setting
from processors.conftest import families, picture, request

SHAPES = [(900, 600), (224, 224)]


def lasting(pair):
    """All that no call changes; some models keep something of the last request."""
    return without_memory(state_of(pair.model, pair.processor))


def batch_of(pair, setting, *images):
    with applied(setting, pair.model, pair.processor) as image_arguments:
        return prepare(
            pair.processor,
            images,
            "a b c",
            device=torch.device("cpu"),
            dtype=torch.float32,
            image_arguments=image_arguments,
        )


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}".format)
def test_full_is_what_the_processor_does_by_itself(pair_of, name, shape):
    pair, image = pair_of(name), picture(*shape)
    knob = find_knob("vision_tokens", pair.model, pair.processor)
    assert knob.image_arguments(knob.full) == {}
    plain, full = (batch_of(pair, setting, image) for setting in (Setting(), Setting(vision_tokens=knob.full)))
    assert plain.keys() == full.keys()
    assert all(torch.equal(plain[key], value) for key, value in full.items())
    expected = pair.model.generate(**plain, max_new_tokens=3, do_sample=False)[0, plain["input_ids"].shape[1] :]
    execution = execute(
        pair.model, request(pair.processor, image), setting=Setting(vision_tokens=knob.full), max_new_tokens=3
    )
    assert execution.output_ids == tuple(expected.tolist())
    assert execution.image_tokens == count_image_tokens(pair.model, plain) <= knob.full


@pytest.mark.parametrize("name", families())
def test_less_is_asked_less_is_read_and_everything_is_as_it_was(pair_of, name):
    pair, image, family = pair_of(name), picture(900, 600), FAMILIES[name]
    knob = find_knob("vision_tokens", pair.model, pair.processor)
    execute(pair.model, request(pair.processor, image), setting=Setting(), max_new_tokens=1)  # lazy hooks
    before, weights = lasting(pair), weights_checksum(pair.model)
    seen = {}
    for value in sorted(knob.levels):
        with counted_work(pair.model) as works:
            execution = execute(
                pair.model, request(pair.processor, image), setting=Setting(vision_tokens=value), max_new_tokens=2
            )
        assert execution.setting == Setting(vision_tokens=value)  # what was asked for
        assert execution.image_tokens == works[0].image_tokens <= value  # what came of it
        assert execution.timing.source == "measured"
        seen[value] = (execution.image_tokens, works[0].vision_inputs)
        assert first_difference(before, lasting(pair)) is None
    assert weights_checksum(pair.model) == weights
    least, most = seen[min(seen)], seen[max(seen)]
    assert least[0] < most[0]
    assert least[1] < most[1]
    assert list(seen.values()) == sorted(seen.values())
    assert (knob.full == min(knob.levels)) == family.only_more


@pytest.mark.parametrize("name", families())
def test_a_call_that_raises_leaves_nothing_behind(pair_of, name, monkeypatch):
    pair, image = pair_of(name), picture(224, 224)
    value = find_knob("vision_tokens", pair.model, pair.processor).levels[-1]
    setting = Setting(vision_tokens=value)
    execute(pair.model, request(pair.processor, image), setting=setting, max_new_tokens=1)
    before = lasting(pair)
    broken = {"the model": (pair.model, "generate"), "the processor": (pair.processor.image_processor, "preprocess")}
    for owner, method in broken.values():
        with monkeypatch.context() as patches:
            patches.setattr(owner, method, lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                execute(pair.model, request(pair.processor, image), setting=setting, max_new_tokens=1)
        assert first_difference(before, lasting(pair)) is None


@pytest.mark.parametrize("name", families())
def test_the_value_holds_for_each_of_several_images(pair_of, name):
    pair, images = pair_of(name), (picture(900, 600), picture(224, 300))
    if name.startswith("GOT-OCR"):
        with pytest.raises(DataError, match="GotOcr2Processor takes one image a request, this one has 2"):
            batch_of(pair, Setting(), *images)
        return
    value = sorted(find_knob("vision_tokens", pair.model, pair.processor).levels)[0]
    setting = Setting(vision_tokens=value)
    both = execute(pair.model, request(pair.processor, *images), setting=setting, max_new_tokens=2).image_tokens
    single = [count_image_tokens(pair.model, batch_of(pair, setting, image)) for image in images]
    if name == "LLaVA-OneVision":
        single = [729 + 1, 729 + 1]  # several images are not cut into tiles: each is whole, and one token ends it
    assert both == sum(single)
    assert all(count <= value for count in single)


@pytest.mark.parametrize("name", families())
def test_levels_are_distinct_and_legal_and_illegal_values_name_the_legal_ones(pair_of, name):
    pair = pair_of(name)
    knob = find_knob("vision_tokens", pair.model, pair.processor)
    assert len(set(knob.levels)) == len(knob.levels) > 1
    for value in knob.levels:
        knob.check(value)
    for value in (0, -1, True, 10**9, (knob.full,), 1.5):
        with pytest.raises(KnobError, match=r"vision_tokens = .* is not legal on this model; legal: \d+"):
            knob.check(value)
    space, _ = find_space(pair.model, pair.processor, {})
    assert space.levels["vision_tokens"] == knob.levels


@pytest.mark.parametrize("name", families(refused=True))
def test_what_cannot_follow_is_refused_with_the_reason(pair_of, name):
    pair = pair_of(name)
    reason = {
        "LLaVA 1.5 (336 px)": "LlavaProcessor gives every image the tokens of one size, crop_size of",
        "PaliGemma": "PaliGemmaProcessor gives 256 image tokens to every image: it writes image_seq_length",
    }[name]
    with pytest.raises(KnobError, match=f"^vision_tokens: {reason}"):
        find_knob("vision_tokens", pair.model, pair.processor)
    _, absent = find_space(pair.model, pair.processor, {})
    assert reason in absent["vision_tokens"]
