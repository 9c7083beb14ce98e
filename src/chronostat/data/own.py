"""Own data: the samples of a file in any of the layouts of ``data/sources``, checked when it is opened."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from chronostat.data.images import ImageSource
from chronostat.data.reading import FIELDS, read_row, require_same_keys
from chronostat.data.samples import SPLITS, Sample, Split
from chronostat.data.sources import read_rows
from chronostat.data.splits import divided, shuffled
from chronostat.errors import ConfigError, DataError


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
        samples = list(_read(path, columns or {}))
        _require_apart(samples)
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


def _read(path: Path, columns: Mapping[str, str]) -> Iterable[Sample]:
    unknown = [field for field in columns if field not in FIELDS]
    if unknown:
        raise ConfigError(f"data.columns.{unknown[0]} is no field of a sample; fields are {', '.join(FIELDS)}")
    samples: list[Sample] = []
    named: list[bool] = []
    seen: dict[str, str | None] = {}
    digests: dict[str, str] = {}
    for number, row in enumerate(read_rows(path), start=1):
        sample, images, has_split = read_row(row, number, columns)
        if sample.id in seen:
            raise DataError(f"{row.where}: id {sample.id!r} appears twice; ids must be unique")
        seen[sample.id] = sample.where
        samples.append(replace(sample, image_digests=tuple(_digest(image, digests) for image in images)))
        named.append(has_split)
    if not samples:
        raise DataError(f"the data file {path} holds no sample; docs/data.md says what it holds")
    require_same_keys(samples, named)
    return samples if all(named) else divided(samples)


def _digest(image: ImageSource, known: dict[str, str]) -> str:
    held = image.fetch()
    if isinstance(held, bytes):
        return hashlib.blake2b(held, digest_size=16).hexdigest()
    if image.name not in known:  # many questions may be asked about one file
        known[image.name] = image.digest()
    return known[image.name]


def _require_apart(samples: Iterable[Sample]) -> None:
    """Accept splits that share no image.

    Raises:
        DataError: names two samples that share one.
    """
    first: dict[str, Sample] = {}
    for sample in samples:
        for digest in sample.image_digests:
            other = first.setdefault(digest, sample)
            if other.split != sample.split:
                raise DataError(
                    f"{sample.where}: its image is also that of {other.where}, but one is in {sample.split} and the "
                    f"other in {other.split}; ask about one image in one split only, or leave out all splits, which "
                    "are then made by image"
                )
