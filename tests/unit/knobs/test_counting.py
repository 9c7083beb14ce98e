"""Lines through what was prepared: which counter explains it, and what is taken where none does."""

from types import SimpleNamespace

import pytest

from chronostat.knobs.vision.counting import Nearest, Seen, approximate, fitted
from chronostat.knobs.vision.own_counts import own_counters
from chronostat.knobs.vision.reading import Reader

SEEN = [((10, 10),), ((20, 10),), ((40, 10),), ((10, 10), (20, 10))]


def area(shape):
    return shape[0] * shape[1] / 100


def seen(tokens_of):
    return [Seen(shapes=shapes, tokens=tokens_of(shapes)) for shapes in SEEN]


def test_the_first_counter_that_explains_everything_is_taken():
    """4 a unit of area, 2 for each picture, 3 for the request: (40, 10) has 4 * 4 + 2 + 3 = 21."""
    line = fitted([lambda _: 0, area], seen(lambda shapes: int(sum(4 * area(s) + 2 for s in shapes) + 3)))
    assert line.exact
    assert line.weights == pytest.approx((4, 2, 3))
    assert line(((40, 10),)) == 21
    assert line(((100, 10), (100, 10))) == 87  # 2 * (40 + 2) + 3


def test_of_two_laws_the_simpler_one_is_taken():
    """Where all pictures count alike, 16 for each is 16 a unit: another count is then taken as so many units."""
    line = fitted([lambda shape: 5 if shape[0] < 100 else 9], [Seen(shapes=s, tokens=80 * len(s)) for s in SEEN])
    assert line.weights == pytest.approx((16, 0, 0))
    assert line(((100, 1),)) == 144


def test_two_counters_together():
    """3 a unit of area, 10 more for a picture above 15 high, 1 for each picture."""

    def high(shape):
        return shape[0] > 15

    line = fitted([area, high], seen(lambda shapes: int(sum(3 * area(s) + 10 * high(s) + 1 for s in shapes))))
    assert line.weights == pytest.approx((3, 10, 1, 0))
    assert line(((100, 10), (10, 10))) == 45  # 30 + 10 + 1 + 3 + 1


def test_no_line_where_nothing_explains():
    assert fitted([area], seen(lambda shapes: len(shapes) * 7 + (shapes[0] == (20, 10)))) is None


def test_the_nearest_is_by_ratio_of_sides():
    """ln(19 / 10) = 0.64 from 10, ln(20 / 19) = 0.05 from 20."""
    nearest = Nearest([Seen(shapes=((10, 10),), tokens=1), Seen(shapes=((20, 10),), tokens=2)])
    assert nearest((19, 10)) == 2
    assert nearest((13, 10)) == 1


def test_approximate_separates_what_a_request_has_once():
    line = approximate([Seen(shapes=shapes, tokens=3 + 2 * len(shapes)) for shapes in SEEN])
    assert not line.exact
    assert line(((10, 10), (20, 10), (40, 10))) == 9  # 3 + 2 * 3


def counters(processor=None, **attributes):
    return own_counters(Reader(SimpleNamespace(image_processor=SimpleNamespace(**attributes), **(processor or {}))))


def test_pixtral_by_hand():
    """16 pixels a patch, the longest edge 64: 128 x 40 is halved to 64 x 20, four rows of two patches."""
    patches, rows = counters({"patch_size": 8, "spatial_merge_size": 2}, size={"longest_edge": 64})
    assert (patches((128, 40)), rows((128, 40))) == (8, 4)
    assert (patches((17, 16)), rows((17, 16))) == (2, 2)


def test_llama_4_by_hand():
    """Tiles of 100: 150 x 90 fits 2 x 1 as it is; 100 x 100 one; 1000 x 100 four in a column, all scaled down."""
    (tiles,) = counters(max_patches=4, resize_to_max_canvas=False, size={"height": 100})
    assert [tiles(shape) for shape in ((150, 90), (100, 100), (1000, 100))] == [3, 1, 5]
    (largest,) = counters(max_patches=4, resize_to_max_canvas=True, size={"height": 100})
    assert largest((100, 100)) == 5


def test_gemma_3_by_hand():
    """Twice as long as high: two crops and the whole; seven times: the four allowed; no crop has a side below 50."""
    limits = {"max_num_crops": 4, "min_crop_size": 50, "min_ratio_to_activate": 1.2}
    scan = {f"pan_and_scan_{name}": limit for name, limit in limits.items()}
    pictures, cut = counters(do_pan_and_scan=True, **scan)
    assert [pictures(shape) for shape in ((200, 100), (100, 700), (110, 100), (49, 200))] == [3, 5, 1, 1]
    assert [cut((200, 100)), cut((110, 100))] == [True, False]
    assert counters(do_pan_and_scan=False, **scan) == []
