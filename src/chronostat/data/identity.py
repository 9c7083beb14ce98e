"""Whose data a run is about: a digest for each split, so that samples that were trained on are never judged."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from chronostat.data.samples import SPLITS, DrawnSamples, Sample, Split
from chronostat.errors import DataError

_DRAWN = 32  # of samples that follow from a seed


class HasSplits(Protocol):
    """Samples, or whatever else is executed, in splits."""

    def split(self, name: Split) -> Sequence[Any]:
        """Those of one split."""
        ...


def digests(dataset: HasSplits) -> dict[str, str]:
    """Who the samples of each split are: ids, prompts, references, options and images, in their order.

    Splits without samples, and ready batches, have none. Samples that are drawn from a seed are told by their number
    and the first of them, since drawing thousands takes seconds; others by all of them, and where their images have no
    digests by what is said alone.
    """
    found: dict[str, str] = {}
    for split in SPLITS:
        try:
            samples = dataset.split(split)
        except DataError:
            continue
        if len(samples) and isinstance(samples[0], Sample):
            found[split] = _digest(samples)
    return found


def require_same(stored: Mapping[str, str], dataset: HasSplits, run: str) -> None:
    """Accept the data that a run began with.

    Args:
        stored: digests of its splits; empty where the run was stored before they were kept.
        dataset: what is there now.
        run: name of the run, for messages.

    Raises:
        DataError: names the splits whose samples are others.
    """
    if not stored:
        return
    now = digests(dataset)
    differing = [split for split in SPLITS if stored.get(split) != now.get(split)]
    if differing:
        raise DataError(
            f"the samples of {' and '.join(differing)} are not those that the run in {run} began with; put the data "
            "back as it was, name where it is now with --data FILE, or begin a new run"
        )


def _digest(samples: Sequence[Sample]) -> str:
    told = samples[:_DRAWN] if isinstance(samples, DrawnSamples) else samples
    digest = hashlib.blake2b(f"{len(samples)}".encode(), digest_size=8)
    for sample in told:
        turns = [(turn.role, turn.parts) for turn in sample.turns]
        parts = (sample.id, sample.prompt, sample.references, turns, sample.options, sample.image_digests)
        digest.update(json.dumps(parts).encode())
    return digest.hexdigest()
