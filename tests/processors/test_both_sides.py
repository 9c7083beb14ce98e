"""Families whose processor and model are both set: they agree with models that were built that way."""

import pytest
import torch
from transformers import GenerationConfig, MllamaForConditionalGeneration, MllamaImageProcessor, MllamaProcessor

from chronostat.execution.execute import execute
from chronostat.knobs.registry import applied, find_knob
from chronostat.models.prepare import prepare
from chronostat.records import Setting
from processors.conftest import picture, request

SIDE_POSITIONS = 257  # 16 x 16 patches of 14 px in a tile of 224 px, and one for the whole tile


def arrangements(most):
    return [[a, b] for a in range(1, most + 1) for b in range(1, most + 1) if a * b <= most]


def built_for(model, tiles):
    """A model with the same weights and fewer tiles: of each embedding the rows and columns of what is left."""
    config = type(model.config)(**model.config.to_dict())
    config.vision_config.max_num_tiles = tiles
    config.vision_config.supported_aspect_ratios = arrangements(tiles)
    smaller = MllamaForConditionalGeneration(config).eval()
    trained = arrangements(4)
    rows = torch.tensor([0, *(trained.index(shape) + 1 for shape in arrangements(tiles))])
    weights = {}
    for name, weight in model.state_dict().items():
        wanted = smaller.state_dict()[name]
        cut = weight if weight.shape == wanted.shape else weight[rows, : wanted.shape[1]]
        weights[name] = cut
    smaller.load_state_dict(weights)
    return smaller


@pytest.mark.parametrize("tiles", [1, 2, 3])
@pytest.mark.parametrize("shape", [(900, 600), (300, 800), (200, 200)])
def test_fewer_tiles_of_mllama_are_those_of_a_model_built_for_fewer(pair_of, tiles, shape):
    pair, image = pair_of("Mllama"), picture(*shape)
    model = pair.model
    gates = [weight for name, weight in model.named_parameters() if name.endswith("gate")]
    with torch.no_grad():
        for gate in gates:
            gate.fill_(0.7)  # a new model's gates are 0, which hides embeddings and cross-attention
    execution = execute(
        model,
        request(pair.processor, image),
        setting=Setting(vision_tokens=tiles * SIDE_POSITIONS),
        max_new_tokens=4,
    )
    plain = MllamaProcessor(
        MllamaImageProcessor(max_image_tiles=tiles),
        pair.processor.tokenizer,
        chat_template=pair.processor.chat_template,
    )
    batch = prepare(plain, [image], "a b c", device=torch.device("cpu"), dtype=torch.float32, image_arguments={})
    smaller = built_for(model, tiles)
    smaller.generation_config = model.generation_config
    expected = smaller.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert execution.output_ids == tuple(expected.tolist())
    assert execution.image_tokens == tiles * SIDE_POSITIONS
    with applied(Setting(vision_tokens=tiles * SIDE_POSITIONS), model, pair.processor), torch.no_grad():
        assert torch.equal(model(**batch).logits, smaller(**batch).logits)


def test_a_static_cache_of_mllama_is_as_long_as_fewer_tiles(pair_of):
    """The library reads its length from the configuration of the vision tower."""
    pair, image = pair_of("Mllama"), picture(900, 600)
    static = GenerationConfig(cache_implementation="static", disable_compile=True)
    answers = [
        execute(
            pair.model,
            request(pair.processor, image),
            setting=Setting(vision_tokens=SIDE_POSITIONS),
            max_new_tokens=4,
            generation_config=config,
        ).output_ids
        for config in (None, static)
    ]
    assert answers[0] == answers[1]


def test_grids_of_processor_and_model_are_set_together_and_set_back(pair_of):
    pair = pair_of("LLaVA-NeXT (336 px)")
    owners = (pair.processor.image_processor, pair.model.config, pair.model.model.config)
    before = [owner.image_grid_pinpoints for owner in owners]
    with applied(Setting(vision_tokens=1776), pair.model, pair.processor):
        assert all(owner.image_grid_pinpoints == [[336, 672], [672, 336]] for owner in owners)
    assert all(owner.image_grid_pinpoints is kept for owner, kept in zip(owners, before, strict=True))


@pytest.mark.parametrize("name", ["Mllama", "LLaVA-NeXT (336 px)"])
def test_what_is_set_on_the_processor_does_not_change_what_is_nearest(pair_of, name):
    """Under the fewest tiles the processor says that it can do no more; what was asked for was more, or less."""
    pair, image = pair_of(name), picture(600, 600)
    knob = find_knob("vision_tokens", pair.model, pair.processor)
    fewest = knob.levels[-1]

    def tokens(asked):
        return execute(
            pair.model, request(pair.processor, image), setting=Setting(vision_tokens=asked), max_new_tokens=1
        ).image_tokens

    least = tokens(fewest)
    for asked in (fewest + 1, fewest - 1, 1 / knob.full):
        assert knob.reached(asked) == fewest
        assert tokens(asked) == least


def test_grids_by_hand(pair_of):
    """336 px of 14 px patches: 24 along a tile; the whole image in 24 * 24, and each row of a grid ends in a token."""
    pair = pair_of("LLaVA-NeXT (336 px)")
    fits_two = execute(
        pair.model, request(pair.processor, picture(672, 336)), setting=Setting(vision_tokens=1776), max_new_tokens=1
    )
    assert fits_two.image_tokens == 24 * 24 + 24 * 48 + 24
    upright = execute(
        pair.model, request(pair.processor, picture(336, 672)), setting=Setting(vision_tokens=1776), max_new_tokens=1
    )
    assert upright.image_tokens == 24 * 24 + 48 * 24 + 48 == 1776
