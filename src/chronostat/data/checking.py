"""What a file of samples holds, and what would be wrong with a run on it."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chronostat.data.own import Read, Shared, shared_images
from chronostat.data.quality import Quality, quality_by_name, score
from chronostat.data.samples import SPLITS, Dataset, DrawnSamples, Sample, Split
from chronostat.errors import DataError
from chronostat.progress import DataWarning

_FIRST = 32  # of a task that is drawn from a seed: its samples are alike


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


def check_references(dataset: Dataset, quality: str) -> None:
    """Accept references that some answer can match; where only some can be, it is said as a ``DataWarning``.

    Raises:
        DataError: not one can be matched.
    """
    samples = [sample for split in SPLITS for sample in looked_at(dataset, split)]
    wrong = never_right(samples, quality_by_name(quality))
    if not wrong:
        return
    first = f"{wrong[0].place}: {wrong[0].references[0]!r}"
    if len(wrong) == len(samples):
        raise DataError(
            f"no reference can be matched by data.quality = {quality!r}: not even the answer that it asks for is right "
            f"({first}); choose another quality, or correct the references"
        )
    warnings.warn(
        f"the references of {len(wrong)} of {len(samples)} samples can never be matched by data.quality = "
        f"{quality!r}, as in {first}",
        DataWarning,
        stacklevel=2,
    )


def never_right(samples: Sequence[Sample], quality: Quality) -> list[Sample]:
    """Those with references of which none is right by this quality when it is given as the answer."""
    return [
        sample
        for sample in samples
        if sample.references and not any(score(quality, answer, sample) for answer in sample.references)
    ]


def looked_at(dataset: Dataset, split: Split) -> Sequence[Sample]:
    """What is looked at before a run of a split that may have no samples: all, or the first of those that are drawn."""
    try:
        samples = dataset.split(split)
    except DataError:  # there are none
        return ()
    return samples[:_FIRST] if isinstance(samples, DrawnSamples) else samples
