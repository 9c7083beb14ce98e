"""How a picture's tokens lie, and how they are cut into cells: drawn by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chronostat.tokens.grid import cells, grid_of, sizes_of
from chronostat.tokens.selection import shares


def drawn(grid, count):
    """The number of the cell that each token lies in, row by row."""
    of = {token: number for number, cell in enumerate(cells(grid, count)) for token in cell.tokens}
    return [[of[row * grid[1] + column] for column in range(grid[1])] for row in range(grid[0])]


def test_a_square_is_cut_into_squares():
    assert drawn((4, 4), 4) == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert [cell.middle for cell in cells((4, 4), 4)] == [0, 2, 8, 10]
    assert [cell.middle for cell in cells((3, 3), 1)] == [4]


def test_where_the_number_is_no_product_bands_have_unequal_numbers_of_cells():
    assert drawn((4, 4), 5) == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 3, 4, 4], [2, 3, 4, 4]]


def test_a_row_is_cut_into_stretches():
    assert drawn((1, 7), 3) == [[0, 0, 1, 1, 2, 2, 2]]


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_every_token_lies_in_one_cell_and_middles_are_in_order(rows, columns, data):
    count = data.draw(st.integers(1, rows * columns))
    found = cells((rows, columns), count)
    assert len(found) == count
    assert sorted(token for cell in found for token in cell.tokens) == list(range(rows * columns))
    assert all(cell.middle in cell.tokens for cell in found)
    assert [cell.middle for cell in found] == sorted(cell.middle for cell in found)


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (576, None, (24, 24)),
        (8, (4, 8), (2, 4)),  # patches, two by two a token
        (24, (84, 126), (4, 6)),  # pixels, 21 a side a token
        (6, (2, 3), (2, 3)),
        (145, None, (1, 145)),  # a square and a separator
        (20, (4, 4), (1, 20)),  # a square and an end to each row
        (16, (640, 479), (4, 4)),  # a size that whole squares do not fit
    ],
)
def test_where_the_tokens_of_a_picture_lie(tokens, size, grid):
    assert grid_of(tokens, size) == grid


def test_sizes_are_read_from_tables_of_whole_numbers():
    arguments = {
        "image_grid_thw": torch.tensor([[1, 4, 6], [1, 2, 2]]),
        "pixel_values": torch.zeros(2, 3),
        "image_sizes": torch.tensor([[336, 224]]),
    }
    assert sizes_of(arguments) == [[(4, 6), (2, 2)], [(336, 224)]]


def test_tokens_are_given_out_in_proportion():
    assert shares([100, 100], 50) == (25, 25)
    assert shares([16] * 5, 8) == (2, 2, 2, 1, 1)
    assert shares([90, 10], 10) == (9, 1)
    assert shares([998, 1, 1], 3) == (1, 1, 1)  # one each at least
    assert shares([5, 5, 5], 2) == (1, 1, 0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
def test_as_many_are_given_out_as_there_are(sizes, data):
    count = data.draw(st.integers(1, sum(sizes)))
    given_out = shares(sizes, count)
    assert sum(given_out) == count
    assert all(0 <= got <= size for got, size in zip(given_out, sizes, strict=True))
