"""What chronostat data check and convert do."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chronostat.config import Config
from chronostat.data.checking import Findings, check
from chronostat.data.convert import write_parquet
from chronostat.data.own import read_samples
from chronostat.data.quality import quality_by_name
from chronostat.data.samples import SPLITS, Sample
from chronostat.data.splits import shuffled
from chronostat.errors import DataError
from chronostat.models.load import Vlm
from chronostat.models.prepare import count_image_tokens, prompt_length
from chronostat.runs.beginning import check_prompts_of, prepared
from chronostat.runs.workload import load_model, quality_of

_SIZES = 12  # of images, of which tokens are counted and shown
_TOLD = 5  # of each kind of mistake


def check_file(file: Path, config: Config, out: Console) -> None:
    """Show what a file holds.

    Raises:
        DataError: a run on it would be refused; what was found has been shown.
    """
    name = quality_of(config)
    read = read_samples(file.expanduser(), config.data.columns)
    found, vlm = check(read, quality_by_name(name)), load_model(config)
    refusals = list(_refusals(found, name))
    out.print(_kinds_table(found))
    out.print(_sizes_table(found, vlm, refusals))
    for split in SPLITS:
        samples = shuffled([each.sample for each in read if each.sample.split == split], config.data.shuffle)
        with _told(refusals):
            check_prompts_of(samples, vlm)
    for told in (*_remarks(found, name), *refusals):
        out.print(told)
    if refusals:
        raise DataError(f"{file} cannot be used as it is: see above")


def convert_file(file: Path, to: Path, columns: Mapping[str, str], shuffle: int | None, out: Console) -> None:
    """Write a file's samples as our own Parquet."""
    read = read_samples(file.expanduser(), columns)
    if shuffle is not None:
        place = {sample.id: number for number, sample in enumerate(shuffled([each.sample for each in read], shuffle))}
        read.sort(key=lambda each: place[each.sample.id])
    write_parquet(to, read)
    splits = Counter(each.sample.split for each in read)
    counts = ", ".join(f"{split} {splits[split]}" for split in SPLITS)
    out.print(f"{to}: {len(read)} samples ({counts}), {to.stat().st_size / 1e6:.1f} MB")


def _kinds_table(found: Findings) -> Table:
    table = Table("kind of question")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for kind in sorted({kind for _, kind in found.kinds}, key=str):
        table.add_row(kind or "-", *(str(found.kinds[split, kind]) for split in SPLITS))
    totals = [sum(count for (each, _), count in found.kinds.items() if each == split) for split in SPLITS]
    table.add_section()
    table.add_row("together", *map(str, totals))
    return table


@contextmanager
def _told(refusals: list[str]) -> Generator[None]:
    """What is refused inside goes to the others, unless one of them says it already."""
    try:
        yield
    except DataError as error:
        if not any(str(error) in refusal for refusal in refusals):
            refusals.append(str(error))


def _sizes_table(found: Findings, vlm: Vlm, refusals: list[str]) -> Table:
    """The most frequent sizes, each with what one sample of it costs at full; why one is refused goes to the others."""
    table = Table("image", title=f"tokens at full, of one sample of each size ({vlm.name})", title_justify="left")
    for head in ("images", "image tokens", "prompt tokens"):
        table.add_column(head, justify="right")
    for (width, height), count in found.sizes.most_common(_SIZES):
        sample = found.first_of_size.get((width, height))
        tokens = ("-", "-")
        if sample is not None:
            with _told(refusals):
                tokens = _tokens(sample, vlm)
        table.add_row(f"{width} x {height}", str(count), *tokens)
    others = len(found.sizes) - _SIZES
    if others > 0:
        table.add_row(f"{others} other sizes", str(sum(n for _, n in found.sizes.most_common()[_SIZES:])), "", "")
    return table


def _tokens(sample: Sample, vlm: Vlm) -> tuple[str, str]:
    batch = prepared(sample, vlm)
    return str(count_image_tokens(vlm.model, batch)), str(prompt_length(batch))


def _remarks(found: Findings, quality: str) -> Iterator[str]:
    """What a run goes on with."""
    wrong = found.never_right
    if wrong and len(wrong) < found.kinds.total():
        first = f"{wrong[0].place}: {wrong[0].references[0]!r}"
        yield f"{len(wrong)} samples have references that {quality} can never match, the first is {first}"


def _refusals(found: Findings, quality: str) -> Iterator[str]:
    """What a run would be refused for."""
    for split in SPLITS:
        if not any(each == split for each, _ in found.kinds):
            yield f"no sample is in {split}"
    for one, other in found.shared[:_TOLD]:
        yield f"{other.place} ({other.split}) and {one.place} ({one.split}) share an image"
    if len(found.shared) > _TOLD:
        yield f"{len(found.shared)} samples share an image with another split"
    yield from found.unreadable[:_TOLD]
    if len(found.unreadable) > _TOLD:
        yield f"{len(found.unreadable)} images cannot be read"
    if len(found.never_right) == found.kinds.total():
        yield f"no reference can be matched by {quality}"
