"""Image features in the forms in which models hand them over, and the same with fewer."""

from collections import OrderedDict

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from chronostat.tokens.pictures import output_pictures, output_with_fewer, pictures_of


def features(*shape):
    return torch.arange(torch.Size(shape).numel()).float().view(shape)


FORMS = {  # what a model returns, and the tokens of each picture in it
    "rows": (features(6, 2), [6]),
    "pictures of one size": (features(2, 3, 2), [3, 3]),
    "a token each": (features(6, 1, 2), [6]),
    "a list of pictures": ([features(4, 2), features(2, 2)], [4, 2]),
    "a pair of pictures": ((features(4, 2), features(2, 2)), [4, 2]),
    "a list of batches": ([features(1, 6, 2)], [6]),
    "levels of pictures": ([(features(4, 2), features(2, 2)), (features(4, 2), features(2, 2))], [4, 2]),
    "levels by block": ([(3, [features(6, 2)]), (7, [features(6, 2)])], [6]),
}


def firsts(pictures):
    """The first two of each picture."""
    return [picture[:2] for picture in pictures]


@pytest.mark.parametrize("name", FORMS)
def test_pictures_are_found_in_every_form(name):
    value, sizes = FORMS[name]
    assert [len(picture) for picture in pictures_of(value, 6)] == sizes
    assert pictures_of(value, 7) is None


@pytest.mark.parametrize("name", FORMS)
def test_fewer_tokens_come_in_the_same_form(name):
    value, sizes = FORMS[name]
    fewer = output_with_fewer(value, sizes, firsts)
    assert type(fewer) is type(value)
    left = pictures_of(fewer, 2 * len(sizes))
    for before, after in zip(pictures_of(value, 6), left, strict=True):
        assert torch.equal(after, before[:2])


def test_unequal_numbers_of_tokens_become_one_picture():
    whole = features(2, 3, 2)
    fewer = output_with_fewer(whole, [3, 3], lambda pictures: [pictures[0][:1], pictures[1]])
    assert fewer.shape == (1, 4, 2)
    assert torch.equal(fewer[0], whole.view(6, 2)[[0, 3, 4, 5]])


def test_levels_in_rows_are_cut_by_picture():
    """Features for several blocks as rows of all pictures, as transformers 5.17 hands them over."""
    output = OrderedDict(pooler_output=(features(4, 2), features(2, 2)), deepstack_features=[features(6, 2)] * 2)
    made = BaseModelOutputWithPooling(pooler_output=output["pooler_output"])
    made.deepstack_features = output["deepstack_features"]
    fewer = output_with_fewer(made, [4, 2], firsts)
    assert [len(picture) for picture in fewer.pooler_output] == [2, 2]
    assert all(torch.equal(level, features(6, 2)[[0, 1, 4, 5]]) for level in fewer.deepstack_features)
    assert made.pooler_output[0].shape == (4, 2)


@pytest.mark.parametrize(
    ("tower", "tokens", "sizes"),
    [
        ((3, 4, 2), 12, [4, 4, 4]),  # a feature for each patch of three tiles
        ((3, 17, 2), 12, [4, 4, 4]),  # a class token, and four patches a feature
        ((3, 4, 2), 14, [14]),  # marks between the tiles
        ((3, 3, 2), 12, [12]),  # fewer patches than features
        ((1, 12, 2), 12, [12]),
    ],
)
def test_tiles_of_equal_size_are_pictures_of_their_own(tower, tokens, sizes):
    made = BaseModelOutputWithPooling(last_hidden_state=features(*tower), pooler_output=[features(tokens, 2)])
    assert [len(picture) for picture in output_pictures(made, tokens)] == sizes


def test_what_the_language_model_is_not_given_stays():
    hidden = features(1, 6, 2)
    made = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=features(6, 2))
    fewer = output_with_fewer(made, [6], firsts)
    assert (fewer.last_hidden_state is hidden, fewer.pooler_output.shape) == (True, (2, 2))
    bare = BaseModelOutputWithPooling(last_hidden_state=hidden)
    assert output_with_fewer(bare, [6], firsts).last_hidden_state.shape == (1, 2, 2)
    assert [len(picture) for picture in output_pictures(bare, 6)] == [6]
