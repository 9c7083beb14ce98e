"""Real handwriting: the digit scans of scikit-learn's `load_digits`, divided among the splits by scan."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from chronostat.data.samples import Split

SCAN_PX = 8
_SHARE_OF_SCANS: dict[Split, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}
_DIVISION_SEED = 20_240  # fixed for ever: another division would show test handwriting to a trained model


@cache
def scan_images() -> NDArray[np.float32]:
    """All scans, [scan, 8, 8] ink between 0 and 1."""
    return (_pixels_and_values()[0].reshape(-1, SCAN_PX, SCAN_PX) / 16.0).astype(np.float32)


@cache
def scan_values() -> NDArray[np.int64]:
    """The digit that each scan shows, [scan]."""
    return _pixels_and_values()[1]


@cache
def scans_of(split: Split) -> NDArray[np.int64]:
    """The indices of the scans that a split may show; no scan belongs to two splits."""
    order = np.random.default_rng(_DIVISION_SEED).permutation(len(scan_values()))
    train_end = round(_SHARE_OF_SCANS["train"] * len(order))
    validation_end = train_end + round(_SHARE_OF_SCANS["validation"] * len(order))
    return {
        "train": order[:train_end],
        "validation": order[train_end:validation_end],
        "test": order[validation_end:],
    }[split]


@cache
def _pixels_and_values() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[scan, 64] ink between 0 and 16, and [scan] digits."""
    from sklearn.datasets import load_digits  # its import takes a second: paid only by those who draw

    pixels, values = load_digits(return_X_y=True)
    return np.asarray(pixels), np.asarray(values)
