"""Own data: the samples of a file in any of the layouts of ``data/sources``, checked when it is opened."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from chronostat.data.columns import FIELDS
from chronostat.data.images import ImageSource, digest_of
from chronostat.data.reading import read_row, require_same_keys
from chronostat.data.samples import SPLITS, Sample, Split
from chronostat.data.sources import read_rows
from chronostat.data.splits import divided, shuffled
from chronostat.errors import ConfigError, DataError

Shared = tuple[Sample, Sample]


@dataclass(frozen=True, kw_only=True)
class Read:
    """A sample as it was read, with where its images come from."""

    sample: Sample
    images: tuple[ImageSource, ...]


class OwnData:
    """The samples of one file or folder.

    Args:
        path: of it.
        columns: names of columns by field, where they are not the usual ones.
        shuffle: seed of the order, which does not depend on that of the file.

    Raises:
        DataError: it cannot be read; a row is malformed, repeats an id, names a missing image or a video; two splits
            share an image. Names file and line.
        ConfigError: ``columns`` names a field that does not exist.
    """

    def __init__(self, path: Path, columns: Mapping[str, str] | None = None, shuffle: int = 0) -> None:
        self._path = path
        samples = [each.sample for each in read_samples(path, columns)]
        for one, other in shared_images(samples):
            raise DataError(
                f"{other.where}: its image is also that of {one.where}, but one is in {other.split} and the other in "
                f"{one.split}; ask about one image in one split only, or leave out all splits, which are then made by "
                "image"
            )
        self._samples = {split: shuffled([s for s in samples if s.split == split], shuffle) for split in SPLITS}

    def split(self, name: Split) -> Sequence[Sample]:
        """The samples of one split, in an order that follows from the ids and the seed.

        Raises:
            DataError: there are none.
        """
        if not self._samples[name]:
            raise DataError(f'{self._path} has no sample with "split": "{name}"; add some')
        return self._samples[name]

    @cached_property
    def everything(self) -> Sequence[Sample]:
        """All samples, split by split."""
        return [sample for samples in self._samples.values() for sample in samples]


def read_samples(path: Path, columns: Mapping[str, str] | None = None) -> list[Read]:
    """The samples of a file in its order, splits made where it has none.

    Raises:
        DataError, ConfigError: as ``OwnData``, but splits may share images.
    """
    unknown = [field for field in columns or () if field not in FIELDS]
    if unknown:
        raise ConfigError(f"data.columns.{unknown[0]} is no field of a sample; fields are {', '.join(FIELDS)}")
    read: list[Read] = []
    named: list[bool] = []
    seen: set[str] = set()
    digests: dict[str, str] = {}
    for number, row in enumerate(read_rows(path), start=1):
        sample, images, has_split = read_row(row, number, columns or {})
        if sample.id in seen:
            raise DataError(f"{row.where}: id {sample.id!r} appears twice; ids must be unique")
        seen.add(sample.id)
        known = replace(sample, image_digests=tuple(_digest(image, digests) for image in images))
        read.append(Read(sample=known, images=tuple(images)))
        named.append(has_split)
    if not read:
        raise DataError(f"the data file {path} holds no sample; docs/data.md says what it holds")
    samples = [each.sample for each in read]
    require_same_keys(samples, named)
    if all(named):
        return read
    return [replace(each, sample=sample) for each, sample in zip(read, divided(samples), strict=True)]


def shared_images(samples: Iterable[Sample]) -> list[Shared]:
    """Pairs of samples in different splits that share an image, each with the first that has it."""
    first: dict[str, Sample] = {}
    shared: list[Shared] = []
    for sample in samples:
        for digest in sample.image_digests:
            other = first.setdefault(digest, sample)
            if other.split != sample.split:
                shared.append((other, sample))
    return shared


def _digest(image: ImageSource, known: dict[str, str]) -> str:
    """Who an image is; of a file, about which many questions may be asked, once."""
    held = image.fetch()
    if isinstance(held, bytes):
        return digest_of(held)
    if image.name not in known:
        known[image.name] = image.digest()
    return known[image.name]
