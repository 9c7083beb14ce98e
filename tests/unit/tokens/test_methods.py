"""Each method of choosing on features whose answer is computed by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from chronostat.errors import KnobError
from chronostat.tokens.listening import Heard, heard_attention
from chronostat.tokens.methods import METHODS
from chronostat.tokens.methods.attention import Attention
from chronostat.tokens.selection import Picture
from chronostat.tokens.towers import Layout
from zoo.build import build

TEXT = torch.tensor([0, 1])


class Embedding(nn.Module):
    """As much of a model as a method asks: two text tokens in a space of two dimensions."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))

    def get_input_embeddings(self):
        return self.embed


def chosen(name, features, count, grid=None):
    picture = Picture(index=0, together=1, features=features, grid=grid or (1, len(features)))
    return METHODS[name](Embedding(), TEXT).choose(picture, count)


def test_pool_averages_the_cells_of_the_grid():
    features = torch.arange(16.0).view(16, 1)
    selection = chosen("pool", features, 4, grid=(4, 4))
    assert selection.of(features)[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]  # (0 + 1 + 4 + 5) / 4, ...
    assert selection.tokens.tolist() == [0, 2, 8, 10]


def test_pool_of_a_row_averages_stretches_of_unequal_length():
    features = torch.tensor([[1.0], [3.0], [5.0], [6.0], [10.0]])
    assert chosen("pool", features, 2).of(features)[:, 0].tolist() == [2.0, 7.0]  # (1 + 3) / 2, (5 + 6 + 10) / 3


def test_pool_holds_each_token_once():
    selection = chosen("pool", torch.ones(600, 1).bfloat16(), 7, grid=(24, 25))
    members, starts = selection.cells
    assert (sorted(members.tolist()), len(starts)) == (list(range(600)), 7)  # not 7 x 600 weights
    assert selection.of(torch.ones(600, 1).bfloat16()).tolist() == [[1.0]] * 7


def test_stride_takes_the_middle_of_each_cell():
    features = torch.arange(36.0).view(36, 1)
    selection = chosen("stride", features, 4, grid=(6, 6))
    assert selection.of(features)[:, 0].tolist() == [7, 10, 25, 28]  # rows 1 and 4, columns 1 and 4


def test_norm_takes_the_longest_in_their_own_order():
    features = torch.tensor([[3.0, 4.0], [0.0, 1.0], [-6.0, 0.0], [2.0, 2.0]])  # 5, 1, 6, 2.8
    assert chosen("norm", features, 2).tokens.tolist() == [0, 2]
    assert chosen("norm", features, 3).tokens.tolist() == [0, 2, 3]


def test_prompt_takes_what_is_most_alike_to_the_text():
    # the normed text is (1, 0) and (0, 1): a feature's mean cosine is (x + y) / (2 * its norm)
    features = torch.tensor([[9.0, 0.0], [1.0, 1.0], [-4.0, 1.0], [2.0, 1.0]])  # 0.5, 0.71, -0.36, 0.67
    assert chosen("prompt", features, 2).tokens.tolist() == [1, 3]
    assert chosen("prompt", features, 3).tokens.tolist() == [0, 1, 3]


def test_prompt_is_refused_where_features_have_another_width():
    with pytest.raises(KnobError, match="features of Embedding have 3 numbers where they are chosen, its text embed"):
        chosen("prompt", torch.zeros(4, 3), 2)


def test_prompt_is_refused_where_there_is_no_text():
    picture = Picture(index=0, together=1, features=torch.zeros(4, 2), grid=(2, 2))
    with pytest.raises(KnobError, match="image_keep = prompt: there is no text beside the image, so no token is more"):
        METHODS["prompt"](Embedding(), TEXT[:0]).choose(picture, 2)


class Fused(nn.Module):
    """A block of one head that attends with its input as queries and keys."""

    def forward(self, hidden):
        return functional.scaled_dot_product_attention(hidden[:, None], hidden[:, None], hidden[:, None], scale=1.0)


class Eager(nn.Module):
    def forward(self, hidden):
        weights = functional.softmax(hidden[:, None] @ hidden[:, None].transpose(-1, -2), dim=-1)
        return weights @ hidden[:, None]


def attention_over(block, hidden, features, grid=None, leading=1):
    """``attention`` after a block has run on ``hidden`` of shape [1, M, d]."""
    method = Attention(Embedding(), TEXT)
    method._layout = Layout(leading=leading)
    plain = block(hidden)
    with heard_attention(block, method._heard):
        assert torch.equal(block(hidden), plain)
    assert not block._forward_hooks
    assert not block._forward_pre_hooks
    return lambda count: method.choose(
        Picture(index=0, together=1, features=features, grid=grid or (1, len(features))), count
    ).tokens.tolist()


@pytest.mark.parametrize("block", [Fused(), Eager()])
def test_attention_of_the_class_token(block):
    # its query (1, 0) meets keys of first coordinates 1, 0, 3, 2: weights in that order
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 9.0], [3.0, 0.0], [2.0, 0.0]]])
    tokens = attention_over(block, hidden, torch.zeros(3, 2))
    assert tokens(1) == [1]
    assert tokens(2) == [1, 2]


@pytest.mark.parametrize("block", [Fused(), Eager()])
def test_attention_between_tokens_where_there_is_no_class_token(block):
    a = math.log(2)  # products of (a, 0) and (b, 0): exp(a * b)
    hidden = torch.tensor([[[a, 0.0], [0.0, 0.0], [2 * a, 0.0]]])
    weights = torch.softmax(torch.tensor([[a * a, 0, 2 * a * a], [0, 0, 0], [2 * a * a, 0, 4 * a * a]]), -1).mean(0)
    assert weights.argsort().tolist() == [1, 0, 2]
    tokens = attention_over(block, hidden, torch.zeros(3, 2), leading=0)
    assert (tokens(1), tokens(2)) == ([2], [0, 2])


def test_attention_of_patches_that_become_one_feature_is_added_over_their_square():
    rows = [[0, 0, 5, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 4]]  # the fourth square has the most, then the second
    first = torch.tensor(rows).float().view(1, 16, 1)
    class_token = torch.ones(1, 1, 1)
    tokens = attention_over(Fused(), torch.cat([class_token, first], dim=1), torch.zeros(4, 2), grid=(2, 2))
    assert (tokens(1), tokens(2)) == ([1], [1, 3])


def test_a_causal_attention_is_read_in_its_last_row():
    heard = Heard()
    block = Fused()
    with heard_attention(block, heard):
        block(torch.tensor([[[1.0], [2.0], [0.5]]]))
    expected = torch.softmax(torch.tensor([0.5, 1.0, 0.25]), 0)
    assert torch.allclose(heard.from_last(), expected)


def test_a_block_that_does_not_attend_is_refused():
    block, heard = nn.Linear(2, 2), Heard()
    with heard_attention(block, heard):
        block(torch.zeros(1, 3, 2))
    with pytest.raises(KnobError, match="no attention was heard in Linear"):
        heard.require(block)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("muse_glimmer", "MuseGlimmerVisionModel attends in windows and does not say which blocks attend to all"),
        ("llama4", "Llama4VisionModel adds class_embedding itself, and does not say whether that comes before its"),
        ("idefics2", "model.connector of Idefics2ForConditionalGeneration attends, so that a feature is made of more"),
        ("gemma4_unified", "has no vision tower with blocks that attend"),
    ],
)
def test_where_attention_says_nothing_it_is_refused(name, reason):
    assert reason in Attention.objection(build(name).model)
