"""The action space."""

import json

import pytest

from chronostat.errors import KnobError
from chronostat.knobs.space import ActionSpace
from chronostat.records import Setting

SPACE = ActionSpace({"vision_tokens": (272, 16), "block_skip": ((), (3, 4), (2, 3, 4, 5))})


def test_it_is_the_product_with_full_first():
    assert len(SPACE) == 6
    assert SPACE.full == SPACE.settings[0] == Setting(vision_tokens=272, block_skip=())
    assert SPACE.settings[-1] == Setting(vision_tokens=16, block_skip=(2, 3, 4, 5))
    assert SPACE.level_indices == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))


def test_the_order_of_the_knobs_in_a_setting_does_not_matter():
    assert SPACE.index(Setting(block_skip=(3, 4), vision_tokens=16)) == 4


@pytest.mark.parametrize("setting", [Setting(), Setting(vision_tokens=80, block_skip=()), Setting(vision_tokens=272)])
def test_a_setting_outside_is_refused_with_the_legal_values(setting):
    with pytest.raises(
        KnobError, match=r"not in the action space; legal values are vision_tokens: 272, 16; block_skip"
    ):
        SPACE.index(setting)


@pytest.mark.parametrize("values", [(), (4, 4)])
def test_values_are_distinct(values):
    with pytest.raises(KnobError, match="knob moe_topk needs distinct values, full first; got"):
        ActionSpace({"moe_topk": values})


def test_it_survives_json():
    again = ActionSpace.from_json(json.loads(json.dumps(SPACE.to_json())))
    assert again.settings == SPACE.settings
    assert again.levels == SPACE.levels
