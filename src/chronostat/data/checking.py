"""What a file of samples holds, and what would be wrong with a run on it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chronostat.data.own import Read, Shared, shared_images
from chronostat.data.quality import Quality, score
from chronostat.data.samples import Sample
from chronostat.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found.

    Attributes:
        kinds: samples by split and kind.
        sizes: images by width and height in pixels.
        first_of_size: a sample for each size of its first image.
        unreadable: what is said of images that are none.
        shared: pairs of samples in different splits that share an image.
        never_right: samples whose references the quality never matches.
    """

    kinds: Counter[tuple[str, str | None]]
    sizes: Counter[tuple[int, int]]
    first_of_size: dict[tuple[int, int], Sample]
    unreadable: Sequence[str]
    shared: Sequence[Shared]
    never_right: Sequence[Sample]


def check(read: Sequence[Read], quality: Quality) -> Findings:
    """Look at every sample, and at the head of every image."""
    sizes: Counter[tuple[int, int]] = Counter()
    first: dict[tuple[int, int], Sample] = {}
    unreadable: list[str] = []
    for each in read:
        for number, image in enumerate(each.images):
            try:
                size = image.size()
            except DataError as error:
                unreadable.append(f"{each.sample.place}: {error}")
                continue
            sizes[size] += 1
            if number == 0:
                first.setdefault(size, each.sample)
    samples = [each.sample for each in read]
    return Findings(
        kinds=Counter((sample.split, sample.kind) for sample in samples),
        sizes=sizes,
        first_of_size=first,
        unreadable=unreadable,
        shared=shared_images(samples),
        never_right=never_right(samples, quality),
    )


def never_right(samples: Sequence[Sample], quality: Quality) -> list[Sample]:
    """Those with references of which none is right by this quality when it is given as the answer."""
    return [
        sample
        for sample in samples
        if sample.references and not any(score(quality, answer, sample) for answer in sample.references)
    ]
