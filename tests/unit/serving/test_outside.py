"""What is forecast of preprocessing, knobs and hooks."""

import numpy as np
import pytest
from PIL import Image

from chronostat.serving.outside import Outside, sizes_of


def size(megapixels, image, text):
    return np.array([1.0, megapixels, image, text])


def test_sizes_are_a_constant_megapixels_and_tokens():
    images = [Image.new("RGB", (1000, 500)), Image.new("RGB", (100, 1000))]
    assert sizes_of(images, np.array([[64.0, 9.0], [16.0, 9.0]])).tolist() == [[1, 0.6, 64, 9], [1, 0.6, 16, 9]]


def test_a_linear_law_is_found_again():
    outside, rng = Outside(), np.random.default_rng(0)
    for _ in range(40):
        one = size(rng.uniform(0.1, 3), rng.integers(16, 300), rng.integers(5, 50))
        outside.add(one, float(one @ [2.0, 5.0, 0.1, 0.01]))
    asked = np.stack([size(1.0, 100, 10), size(2.0, 200, 10)])
    assert outside.typical_ms(asked) == pytest.approx([17.1, 32.1])  # 2 + 5 + 10 + .1; 2 + 10 + 20 + .1
    assert outside.most_ms(asked) == pytest.approx([17.1, 32.1])
    assert outside.least_ms == pytest.approx(2.0)


def test_for_deadlines_nine_of_ten_are_within():
    outside = Outside()
    for ms in range(1, 12):
        outside.add(size(1, 1, 1), float(ms))
    assert outside.typical_ms(size(1, 1, 1)[None]) == pytest.approx([6.0])  # mean of 1 to 11
    assert outside.most_ms(size(1, 1, 1)[None]) == pytest.approx([10.0])  # the tenth of eleven


def test_nothing_is_known_at_first_and_nothing_is_ever_below_0():
    outside = Outside()
    asked = size(1, 1, 1)[None]
    assert outside.typical_ms(asked) == outside.most_ms(asked) == [0.0]
    for tokens in range(1, 5):
        outside.add(size(0, tokens, 0), 10.0 - 2 * tokens)
    assert outside.typical_ms(size(0, 100, 0)[None]) == [0.0]


def test_only_the_latest_requests_count():
    outside = Outside()
    for count in range(3 * 256 + 10):
        outside.add(size(1, 1, 1), 90.0 if count < 2 * 256 + 10 else 6.0)
    assert outside.typical_ms(size(1, 1, 1)[None]) == pytest.approx([6.0])
    assert outside.most_ms(size(1, 1, 1)[None]) == pytest.approx([6.0])


def test_requests_that_are_all_alike_are_forecast_and_so_is_text_alone():
    outside = Outside()
    for _ in range(5):
        outside.add(size(0, 0, 9), 4.0)
    assert outside.typical_ms(size(0, 0, 9)[None]) == pytest.approx([4.0])
    assert 0 < outside.least_ms < 4.0
    assert outside.typical_ms(size(5, 0, 9)[None]) == pytest.approx([4.0])  # what pictures take is not known yet
