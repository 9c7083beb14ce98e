"""Which tokens of a tower become which feature; a tower with windows against attention computed by hand."""

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from chronostat.errors import KnobError
from chronostat.knobs.registry import applied
from chronostat.records import Setting
from chronostat.tokens.methods.attention import Attention
from chronostat.tokens.selection import Picture
from chronostat.tokens.towers import Layout, heard_block, objection_to, tower_of
from stand_ins.windowed import GRIDS, qwen2_5, two_pictures
from zoo.build import build

CPU = torch.device("cpu")


class Tokens(nn.Module):
    """A tower with tokens before its patches, as far as they are read from it."""

    def __init__(self, **learned):
        super().__init__()
        self.embeddings = nn.Module()
        for name, shape in learned.items():
            self.embeddings.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, pixels):
        return pixels


def test_squares_lie_row_by_row_behind_the_tokens_before_them():
    layout = Layout.of(Tokens(cls_token=(1, 1, 8), register_tokens=(1, 2, 8), position_embeddings=(1, 19, 8)))
    assert layout == Layout(leading=3, in_squares=False)
    first, *_, last = layout.patches(3 + 16, (2, 2), CPU).tolist()
    assert (first, last) == ([3, 4, 7, 8], [13, 14, 17, 18])


def test_squares_that_follow_each_other():
    tower = Tokens()
    tower.spatial_merge_size = 2
    assert Layout.of(tower).patches(8, (1, 2), CPU).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("layout", "seen", "grid"),
    [
        (Layout(leading=1), 16, (4, 4)),  # the class token is missing
        (Layout(), 17, (4, 4)),  # padding behind the patches
        (Layout(), 8, (2, 2)),  # two patches a feature
        (Layout(), 3, (2, 2)),
        (Layout(leading=5), 5, (1, 1)),
        (Layout(), 24, (1, 6)),  # squares in a picture whose rows are not known
    ],
)
def test_other_numbers_are_no_squares(layout, seen, grid):
    assert layout.patches(seen, grid, CPU) is None


@pytest.mark.parametrize(("layers", "block"), [(-2, 1), ([-2, 1], 1), ([1, 2], 1), (0, 0), (-1, 2), (None, 2)])
def test_the_block_that_is_heard_is_the_last_that_features_are_made_of(layers, block):
    model = build("vipllava").model
    before = model.config.vision_feature_layers
    model.config.vision_feature_layers = layers
    tower = tower_of(model)
    heard = heard_block(model, tower)
    model.config.vision_feature_layers = before
    assert heard is tower.encoder.layers[block]


def in_windows_of_two(rows, columns):
    """The features in the order in which windows of two by two hold them."""
    return [
        row * columns + column
        for top in range(0, rows, 2)
        for left in range(0, columns, 2)
        for row in range(top, min(top + 2, rows))
        for column in range(left, min(left + 2, columns))
    ]


@torch.no_grad()
def received_by_hand(model, batch, index):
    """The attention that each feature of each picture gets in a block that attends to the whole picture."""
    block, given = model.model.visual.blocks[index], {}

    def note(_, args, kwargs):
        given["hidden"], given["angles"] = args[0], kwargs["position_embeddings"]

    hook = block.register_forward_pre_hook(note, with_kwargs=True)
    model.get_image_features(batch["pixel_values"], image_grid_thw=batch["image_grid_thw"])
    hook.remove()
    tokens = len(given["hidden"])
    queries, keys, _ = block.attn.qkv(block.norm1(given["hidden"])).view(tokens, 3, 2, 8).unbind(1)
    queries, keys = apply_rotary_pos_emb_vision(queries, keys, *given["angles"])  # [M, heads, 8]
    received, before = [], 0
    for rows, columns in GRIDS:
        own = slice(before, before + 4 * rows * columns)
        weights = torch.einsum("qhd,khd->hqk", queries[own], keys[own]).div(8**0.5).softmax(dim=-1)
        squares = weights.mean(dim=(0, 1)).view(-1, 4).sum(dim=1)
        received.append(
            torch.empty(rows * columns).index_copy(0, torch.tensor(in_windows_of_two(rows, columns)), squares)
        )
        before = own.stop
    return received


def test_a_tower_with_windows_is_heard_where_it_attends_to_the_whole_picture(monkeypatch):
    model, batch = qwen2_5(), two_pictures()
    assert objection_to(model) is None
    tower = tower_of(model)
    assert heard_block(model, tower) is tower.blocks[1]  # blocks 0 and 2 attend in windows
    kept = {}
    choose = Attention.choose

    def noted(self, picture, count):
        selection = choose(self, picture, count)
        kept[picture.index] = selection.tokens.tolist()
        return selection

    monkeypatch.setattr(Attention, "choose", noted)
    with applied(Setting(image_keep="attention:13"), model, None):
        model.generate(**batch, max_new_tokens=2, do_sample=False)
    expected = received_by_hand(model, batch, 1)
    assert kept == {
        index: sorted(received.topk(count).indices.tolist())
        for index, (received, count) in enumerate(zip(expected, (8, 5), strict=True))  # 24 and 15 of 39
    }
    assert "permute_input_for_window_attn" not in vars(tower)
    assert not tower.blocks[1]._forward_pre_hooks


def test_windows_alone_say_nothing():
    assert "attends in windows and does not say which blocks attend to all" in objection_to(qwen2_5(full=()))
    assert "attends in windows" in objection_to(build("muse_glimmer").model)


def test_fewer_pictures_than_the_tower_saw_are_refused():
    method = Attention(None, None)
    picture = Picture(index=0, together=1, features=torch.zeros(4, 2), grid=(2, 2))
    with pytest.raises(KnobError, match="attends over 0 pictures, and the features are of 1; use another method"):
        method.choose(picture, 2)
