import gc
import weakref

import pytest
from torch import nn

from chronostat.errors import ModelError
from chronostat.knobs.registry import applied
from chronostat.models.anatomy import anatomy_of, find_anatomy
from chronostat.models.blocks import running_blocks
from chronostat.records import Setting
from stand_ins.molmo_like import molmo_like


def test_the_parts_of_the_bundled_model(bundled):
    anatomy = find_anatomy(bundled.model)
    blocks = tuple(f"model.language_model.layers.{i}" for i in range(8))
    assert anatomy.vision == ("model.vision_tower",)
    assert anatomy.projector == ("model.multi_modal_projector",)
    assert (anatomy.block_list, anatomy.blocks) == ("model.language_model.layers", blocks)
    assert anatomy.routers == tuple(f"{block}.mlp.gate" for block in blocks)
    assert (anatomy.head, anatomy.encoders) == ("lm_head", ())


def test_the_parts_of_a_first_generation_molmo():
    anatomy = find_anatomy(molmo_like())
    assert anatomy.vision == ("model.vision_backbone",)
    assert anatomy.projector == ("model.vision_backbone.image_projector",)
    assert anatomy.block_list == "model.transformer.blocks"
    assert anatomy.routers == tuple(f"model.transformer.blocks.{i}.mlp" for i in range(4))
    assert anatomy.head == "lm_head"


def test_a_list_of_projectors_is_taken_apart_since_a_list_is_never_called():
    model = molmo_like()
    model.model.vision_backbone.image_projector = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    path = "model.vision_backbone.image_projector"
    assert find_anatomy(model).projector == (f"{path}.0", f"{path}.1")


def test_a_list_of_towers_is_taken_apart_likewise():
    model, path = molmo_like(), "model.vision_backbone.image_vit"
    model.model.vision_backbone.image_vit = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    assert find_anatomy(model, {"vision": path}).vision == (f"{path}.0", f"{path}.1")


def test_a_layout_that_is_given_later_counts_from_then_on():
    model = molmo_like()
    assert anatomy_of(model).vision == ("model.vision_backbone",)
    anatomy_of(model, {"vision": "model.vision_backbone.image_vit"})
    assert anatomy_of(model).vision == ("model.vision_backbone.image_vit",)


def test_layout_overrides_what_is_found():
    layout = {"vision": ("model.vision_backbone.image_vit",), "projector": "model.vision_backbone.image_pooling_2d"}
    anatomy = find_anatomy(molmo_like(), layout)
    assert anatomy.vision == ("model.vision_backbone.image_vit",)
    assert anatomy.projector == ("model.vision_backbone.image_pooling_2d",)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"tower": "lm_head"}, "unknown part 'tower'; known parts: vision, projector, blocks, head"),
        ({"vision": "model.eyes"}, "vision = 'model.eyes' is no module of MolmoLike; there are: model, "),
        ({"blocks": "lm_head"}, "blocks = 'lm_head' is a Linear; name the list"),
        ({"blocks": ("lm_head", "model")}, "must be the path of one list of decoder blocks"),
        ({"vision": ""}, "vision = '' is or holds blocks = 'model.transformer.blocks', so that the time"),
        ({"projector": "model"}, "projector = 'model' is or holds blocks = 'model.transformer.blocks'"),
        ({"vision": "model.transformer.blocks.0"}, "'model.transformer.blocks.0' lies in blocks = 'model.transf"),
        (
            {"vision": "model.transformer.ln_f"},
            "vision = 'model.transformer.ln_f' lies in 'model.transformer' with the decoder blocks, but "
            "model.vision_backbone encodes the images, beside it; name the module of vision",
        ),
        (
            {"vision": "model.transformer"},
            "vision = 'model.transformer' is or holds blocks = 'model.transformer.blocks'",
        ),
        ({"projector": "lm_head"}, "projector = 'lm_head' is or holds head = 'lm_head', so that the time"),
        (
            {"projector": "model.vision_backbone"},
            "projector = 'model.vision_backbone' is or holds vision = 'model.vision_backbone'",
        ),
        (
            {"vision": "model.vision_backbone.image_vit", "projector": "model.vision_backbone"},
            "projector = 'model.vision_backbone' is or holds vision = 'model.vision_backbone.image_vit'",
        ),
    ],
)
def test_a_wrong_layout_is_refused(layout, message):
    with pytest.raises(ModelError, match=message):
        find_anatomy(molmo_like(), layout)


def test_blocks_that_cannot_be_found_list_the_candidates():
    model = molmo_like()
    model.config.num_hidden_layers = 9
    with pytest.raises(
        ModelError, match=r"no list of 9 modules.*model.transformer.blocks \(4 modules\).*model.layout.blocks"
    ):
        find_anatomy(model)


def test_an_anatomy_is_remembered_without_keeping_the_model():
    model = molmo_like()
    anatomy = anatomy_of(model, {"vision": "model.vision_backbone.image_vit"})
    assert anatomy_of(model) is anatomy
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_running_blocks_leave_out_those_that_a_knob_took_out():
    model = molmo_like()
    blocks = list(model.model.transformer["blocks"])
    anatomy = anatomy_of(model)
    with applied(Setting(block_skip=(0, 3)), model, None):
        assert running_blocks(model, anatomy.blocks) == blocks[1:3]
    assert running_blocks(model, anatomy.blocks) == blocks
