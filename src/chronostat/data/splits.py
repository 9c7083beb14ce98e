"""Splits that are made where a file has none, and the order within a split."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from chronostat.data.samples import Sample, Split

# shares of the images; a sample stays where it is when others are added
SHARES: dict[Split, float] = {"train": 0.6, "validation": 0.15, "test": 0.25}


def divided(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with splits by the hash of their images; those that share an image stay together."""
    groups = _Groups()
    for sample in samples:
        for digest in sample.image_digests:
            groups.join(sample.image_digests[0], digest)
    return [replace(sample, split=_split_of(groups.first(sample.image_digests[0]))) for sample in samples]


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """In an order by the hash of seed and id, so that a file sorted by kind or size is not."""
    return sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}:{sample.id}".encode()).digest())


def _split_of(digest: str) -> Split:
    place = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8]) / 2**64
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "test"


class _Groups:
    """Images that are joined by samples with several of them; each group is named by its least digest."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def first(self, digest: str) -> str:
        root = self._parent.setdefault(digest, digest)
        while root != self._parent[root]:
            root = self._parent[root]
        self._parent[digest] = root
        return root

    def join(self, one: str, other: str) -> None:
        low, high = sorted((self.first(one), self.first(other)))
        self._parent[high] = low
