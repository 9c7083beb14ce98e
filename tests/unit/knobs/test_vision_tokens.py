"""``vision_tokens``: numbers by hand, what is refused, and the first Molmo generation through its own processor."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import dynamic_module_utils

from chronostat.cli.actions.knobs import nearest_values
from chronostat.data.samples import Sample
from chronostat.errors import DataError, KnobError
from chronostat.execution.execute import SampleRequest, execute, request_for
from chronostat.execution.sizes import RequestSizes
from chronostat.knobs.registry import find_knob, find_space
from chronostat.knobs.vision import find_mechanism
from chronostat.knobs.vision.mechanism import span, steps
from chronostat.models.load import load_vlm
from chronostat.models.weights import first_difference, state_of, without_memory
from chronostat.records import Setting
from stand_ins.batches import batch_of
from stand_ins.molmo_v1 import write_checkpoint

MODEL = SimpleNamespace(config=SimpleNamespace(), modules=lambda: ())


def stand_in(image, **processor):
    """A processor that is asked for its attributes only."""
    return SimpleNamespace(image_processor=SimpleNamespace(**image), **processor)


def mechanism_of(image, **processor):
    return find_mechanism(MODEL, stand_in(image, **processor))


def test_tiles_by_hand():
    """12 tiles of 256 and a thumbnail; shares 12, 6.75 and 3 of 12 tiles, and one."""
    found = mechanism_of({"max_patches": 12, "crop_to_patches": True}, image_seq_length=256)
    assert (found.full, found.levels) == (13 * 256, (13 * 256, 8 * 256, 4 * 256, 256))
    assert found.arguments(8 * 256) == {"max_patches": 7}
    assert found.arguments(256) == {"max_patches": 1}
    assert found.arguments(found.full) == {}
    assert found.possible_words.startswith("256, 768, 1024")  # 1, 2 and 3 tiles


def test_tiles_that_are_not_cut_by_default_are_more_than_full():
    found = mechanism_of({"max_patches": 4, "crop_to_patches": False}, image_seq_length=10)
    assert (found.full, found.levels) == (10, (10, 50, 30))
    assert found.arguments(30) == {"crop_to_patches": True, "max_patches": 2}
    assert found.possible_words == "10, 30, 40, 50"


def test_the_processors_word_counts_before_that_of_its_image_processor():
    image = {"max_patches": 4, "crop_to_patches": False}
    own = mechanism_of(image, image_seq_length=10, images_kwargs={"crop_to_patches": True, "max_patches": 3})
    assert own.full == 40
    typed = SimpleNamespace(_defaults={"images_kwargs": {"crop_to_patches": True}, "text_kwargs": {}})
    assert mechanism_of(image, image_seq_length=10, valid_processor_kwargs=typed).full == 50


def test_squares_by_hand():
    """2048 px are 4 squares of 512 along a side: 16 and the whole; 3 a side are 9 and the whole, the share is 9/16."""
    image = {
        "size": {"longest_edge": 2048},
        "max_image_size": {"longest_edge": 512},
        "do_image_splitting": True,
    }
    found = mechanism_of(image, image_seq_len=64)
    assert found.levels == (17 * 64, 10 * 64, 5 * 64, 64)
    assert found.arguments(10 * 64) == {"size": {"longest_edge": 3 * 512}}


def test_areas_by_hand():
    """28 x 28 pixels a token; 100 tokens may enlarge small images to 49, but not beyond the default of 4."""
    image = {
        "size": {"shortest_edge": 4 * 784, "longest_edge": 1280 * 784},
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 1,
    }
    found = mechanism_of(image)
    assert found.levels == (1280, 576, 256, 64)  # 9/16, 1/4 and 1/16 of 1024
    assert found.arguments(100) == {"size": {"shortest_edge": 4 * 784, "longest_edge": 100 * 784}}
    assert found.arguments(6) == {"size": {"shortest_edge": 2 * 784, "longest_edge": 6 * 784}}
    assert found.possible_words == "4 to 1280"


def test_the_longest_edge_by_hand():
    """1540 px of 28 px a token: 55 along a side; 100 tokens are 10 a side, 99 only 9."""
    image = {"size": {"longest_edge": 1540}}
    found = mechanism_of(image, patch_size=14, spatial_merge_size=2)
    assert found.full == 55 * 55
    assert found.arguments(100) == {"size": {"longest_edge": 280}}
    assert found.arguments(99) == {"size": {"longest_edge": 252}}


def test_token_limits_by_hand():
    found = mechanism_of({"max_image_tokens": 8000, "min_image_tokens": 16, "merge_size": 2})
    assert found.levels == (8000, 576, 256, 64)
    assert found.arguments(64) == {"max_image_tokens": 64, "min_image_tokens": 16}
    assert found.arguments(16) == {"max_image_tokens": 16, "min_image_tokens": 7}
    assert found.possible_words == "16 to 8000"


def test_tiles_of_tokens_by_hand():
    """Tiles of 512 px, 16 px patches joined 2 x 2: 256 tokens; n tiles and a whole image of up to 256."""
    image = {
        "max_tiles": 10,
        "min_tiles": 2,
        "max_image_tokens": 256,
        "min_image_tokens": 64,
        "tile_size": 512,
        "encoder_patch_size": 16,
        "downsample_factor": 2,
        "use_thumbnail": True,
        "do_image_splitting": True,
    }
    found = mechanism_of(image)
    assert found.full == 11 * 256
    assert found.arguments(7 * 256) == {"max_tiles": 6}
    assert found.arguments(200) == {"do_image_splitting": False, "max_image_tokens": 200, "min_image_tokens": 64}
    assert found.possible_words.startswith("64 to 256, 768, 1024")
    without = mechanism_of({**image, "do_image_splitting": False})
    assert (without.full, without.levels) == (256, (256, 144, 64))


def test_crops_of_both_molmo_generations_by_hand():
    """24 patches a crop, 16 its own, pooled 2 x 2; a row of 12 crops is 4 x 100 with margins: 12 * 100 tokens."""
    first = {
        "max_crops": 12,
        "overlap_margins": [4, 4],
        "base_image_input_size": (336, 336),
        "image_patch_size": 14,
    }
    found = mechanism_of(first)
    assert found.full == 12 * 12 + 12 * 100  # (12 * 16 + 8) / 2 = 100
    assert found.levels[-1] == 2 * 12 * 12
    assert found.arguments(2 * 12 * 12) == {"max_crops": 1}
    second = {
        "max_crops": 1,
        "overlap_margins": [4, 4],
        "size": {"height": 378, "width": 378},
        "patch_size": 14,
        "pooling_size": [2, 2],
    }
    assert mechanism_of(second).full == 2 * 14 * 14  # 27 patches are 14 pairs


def test_pan_and_scan_by_hand():
    """A picture of the whole and 2, 3 or 4 crops; one crop would be the whole again."""
    image = {"do_pan_and_scan": None, "pan_and_scan_max_num_crops": 4}
    off = mechanism_of(image, image_seq_length=256)
    assert (off.full, off.levels, off.possible_words) == (256, (256, 1280, 768), "256, 768, 1024, 1280")
    assert off.arguments(768) == {"do_pan_and_scan": True, "pan_and_scan_max_num_crops": 2}
    on = mechanism_of({**image, "do_pan_and_scan": True}, image_seq_length=256)
    assert (on.full, on.levels) == (1280, (1280, 768, 256))
    assert on.arguments(256) == {"do_pan_and_scan": False}


def test_shares_of_steps_round_to_what_there_is():
    found = steps(says="", full=40, tokens={2: 10, 3: 20, 4: 40}, arguments=lambda tiles: {"n": tiles})
    assert found.levels == (40, 10)  # shares of 4: 2.25, 1 and 0, of which 2 is the fewest
    assert found.arguments(20) == {"n": 3}


def test_a_span_is_never_below_its_fewest():
    found = span(says="", full=100, least=60, arguments=lambda tokens: {"n": tokens})
    assert found.levels == (100, 60)
    assert found.arguments(77) == {"n": 77}
    assert found.possible_words == "60 to 100"


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        (20, 20),
        (14, 10),
        (16, 20),
        (15, 10),  # of two equally near ones the smaller
        (1, 10),
        (40, 40),
        (41, None),
        (0, None),
        (-3, None),
        (0.5, 20),
        (0.6, 20),  # 24 tokens
        (0.025, 10),  # 1 token
        (0.02, None),  # less than one
        (1.0, None),
        (-0.5, None),
        (math.nan, None),
        (True, None),
        ((20,), None),
        ([20], None),
        ("20", None),
        (20.0, None),
    ],
)
def test_what_cannot_be_met_exactly_is_the_nearest_possible_number(asked, nearest):
    found = steps(says="", full=40, tokens={2: 10, 3: 20, 4: 40}, arguments=lambda tiles: {"n": tiles})
    assert found.nearest(asked) == nearest


def test_a_span_meets_every_number_it_has():
    found = span(says="", full=100, least=60, arguments=lambda tokens: {"n": tokens})
    assert [found.nearest(asked) for asked in (59, 60, 77, 100, 0.777)] == [60, 60, 77, 100, 78]
    assert found.nearest(0.775) == 77  # 77.5 tokens: of two equally near ones the smaller


def test_a_setting_keeps_what_was_asked_and_an_execution_what_was_read(bundled, demo_sample):
    """Of at most 96 tokens (5 tiles and the whole) a square image has those of 2 x 2 tiles."""
    request = request_for(demo_sample, bundled.processor, None)
    for asked, read in ((0.3, 80), (100, 80), (160, 160)):
        execution = execute(bundled.model, request, setting=Setting(vision_tokens=asked), max_new_tokens=1)
        assert (execution.setting["vision_tokens"], execution.image_tokens) == (asked, read)


def test_an_action_space_holds_each_possible_number_once(bundled):
    space, _ = find_space(bundled.model, bundled.processor, {"vision_tokens": [0.3, 85, 80, 0.999, 16]})
    assert space.levels["vision_tokens"] == (272, 80, 16)


def test_values_that_cannot_be_met_are_told_with_what_they_are_taken_to(bundled):
    asked = {"vision_tokens": (0.3, 85, 80), "moe_topk": (1,), "block_skip": None, "moe_keep_first": False}
    assert nearest_values(bundled, asked) == {"vision_tokens": {"0.3": 80, "85": 80}}


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (SimpleNamespace(), "SimpleNamespace has no image processor"),
        (stand_in({"size": 5}), "takes none of the arguments that are known to change its image tokens"),
        (stand_in({"size": 5}, image_seq_length=64), "gives 64 image tokens to every image"),
        (stand_in({"spatial_patch_size": 1}), "adds image tokens for each row of an image"),
        (stand_in({}, vision_feature_select_strategy="default"), "the tokens of one size"),
        (stand_in({"max_image_tiles": 4}), "cuts another number of tiles .* than the vision tower is built for"),
        (stand_in({"image_grid_pinpoints": [[336, 672]]}), "has image_grid_pinpoints, but counts"),
    ],
)
def test_others_are_refused_with_the_reason(processor, reason):
    with pytest.raises(KnobError, match=f"^vision_tokens: .*{reason}"):
        find_mechanism(MODEL, processor)


def forget_remote_code():
    """The package of copied code remembers in which folder it was first looked for."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def molmo(tmp_path_factory):
    """A checkpoint of the first generation with the processor's numbers: patches of 3, 4 of them a token."""
    folder = tmp_path_factory.mktemp("molmo_tokens")
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
        patches.setattr(sys, "path", [*sys.path])
        forget_remote_code()
        checkpoint = write_checkpoint(folder / "molmo_tokens", pixels=3, patches_per_token=4)
        yield load_vlm(checkpoint, device="cpu", trust_remote_code=True)
    forget_remote_code()


def long_picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 200, 3), dtype=np.uint8))


def request_of(molmo, *images):
    sample = Sample(id="a", split="train", prompt="what", references=(), load_images=lambda: images)
    return SampleRequest(sample=sample, images=images, processor=molmo.processor, quality=None)


def test_first_molmo_says_nothing_beforehand_so_pictures_count_as_the_nearest_known(molmo):
    space, _ = find_space(molmo.model, molmo.processor, {})
    sizes, request = RequestSizes(molmo.model, molmo.processor, space), request_of(molmo, Image.new("RGB", (640, 480)))
    assert sizes.exact == {24: False, 21: False, 18: True}  # without crops a picture is always the same
    execution = execute(molmo.model, request, setting=space.full, max_new_tokens=1)
    image, text = sizes(request)[0]
    assert image == execution.image_tokens
    assert text == execution.prompt_tokens - execution.image_tokens


def test_first_molmo_reads_as_many_crops_as_asked_for(molmo):
    """The whole image in 3 x 3 tokens; n crops in a row have 3 rows of n + 2."""
    knob = find_knob("vision_tokens", molmo.model, molmo.processor)
    assert knob.levels == (9 + 15, 9 + 12, 9 + 9)  # 3, 2 and 1 crops
    execute(molmo.model, request_of(molmo, long_picture()), setting=Setting(), max_new_tokens=1)
    before = without_memory(state_of(molmo.model, molmo.processor))
    seen = []
    for value in knob.levels:
        handle = molmo.model.model.vision_backbone.register_forward_pre_hook(
            lambda _, inputs: seen.append(tuple(inputs[0].shape))
        )
        execution = execute(
            molmo.model,
            request_of(molmo, long_picture()),
            setting=Setting(vision_tokens=value),
            max_new_tokens=3,
        )
        handle.remove()
        assert execution.image_tokens == value
        assert execution.timing.source == "measured"
        assert len(execution.output_ids) == 3
    assert seen == [(1, 1 + crops, 36, 3) for crops in (3, 2, 1)]
    assert first_difference(before, without_memory(state_of(molmo.model, molmo.processor))) is None


def test_full_of_first_molmo_is_its_own_call(molmo):
    made = molmo.processor.process(images=[long_picture()], text="what")
    batch = batch_of(
        molmo, [long_picture()], "what", **find_knob("vision_tokens", molmo.model, molmo.processor).image_arguments(24)
    )
    assert {key: value.shape[1:] for key, value in batch.items()} == {key: value.shape for key, value in made.items()}
    assert all(torch.equal(batch[key][0], value) for key, value in made.items())


def test_several_images_of_first_molmo_are_bounded_each(molmo):
    execution = execute(
        molmo.model,
        request_of(molmo, long_picture(), long_picture().resize((50, 50))),
        setting=Setting(vision_tokens=18),
        max_new_tokens=1,
    )
    assert execution.image_tokens == 2 * 18


def test_a_processor_without_template_or_method_is_refused(bundled, monkeypatch):
    monkeypatch.setattr(bundled.processor, "chat_template", None)
    with pytest.raises(DataError, match="InternVLProcessor has no chat template; add one"):
        batch_of(bundled, [long_picture()], "what")
