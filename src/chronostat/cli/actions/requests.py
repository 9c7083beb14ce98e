"""What chronostat measure and knobs execute: requests from images, a folder of them, or a task."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chronostat.data.demo import DemoTask
from chronostat.data.images import image_size, load_images, picture_suffixes
from chronostat.data.samples import Sample
from chronostat.errors import ConfigError, DataError
from chronostat.execution.execute import SampleRequest
from chronostat.models.load import Vlm
from chronostat.studies.survey import Requests


def one_request(vlm: Vlm, images: Sequence[Path], prompt: str | None, *, own_model: bool) -> SampleRequest:
    """What the user gave as the one request; one of the bundled task for the bundled model.

    Raises:
        ConfigError: half a request, or none for an own model.
        ModelError: the processor lacks a package, or its template leaves images out.
        DataError: an image cannot be read, or the processor refuses the request.
    """
    requests = Requests(vlm=vlm, samples=[one_sample(images, prompt, own_model=own_model)])
    requests.check()
    return requests[0]


def one_sample(images: Sequence[Path], prompt: str | None, *, own_model: bool) -> Sample:
    """The sample of that request.

    Raises:
        ConfigError: half a request, or none for an own model.
        DataError: an image cannot be read.
    """
    if images and prompt:
        return image_sample("request", prompt, images)
    if own_model:
        raise ConfigError("an own model needs a request: give --image FILE and --prompt TEXT")
    if images or prompt:
        raise ConfigError("give --image FILE and --prompt TEXT together, or neither for a request of the bundled task")
    return DemoTask().split("validation")[0]


def image_sample(name: str, prompt: str, images: Sequence[Path]) -> Sample:
    """A question about image files, of which only the heads are read, so that a wrong file is said at once.

    Raises:
        DataError: one is missing or no picture.
    """
    for image in images:
        image_size(image, str(image))
    return Sample(id=name, split="test", prompt=prompt, references=(), load_images=partial(load_images, images))


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The images of a folder, and what else is there.

    Attributes:
        images: the files that are read, in the order of their names.
        left_out: why, with how many files.
    """

    images: Sequence[Path]
    left_out: Counter[str]

    def told(self, most: int) -> Iterator[str]:
        """What is not measured, for people, where so many images are."""
        if self.left_out:
            yield "left out: " + ", ".join(f"{count} {why}" for why, count in sorted(self.left_out.items()))
        if len(self.images) > most:
            yield f"{most} of {len(self.images)} images are measured; --requests says how many"


def images_in(path: Path) -> Folder:
    """The images of a folder: what is no picture is left out, with a reason.

    Raises:
        DataError: it is no folder, or holds no image.
    """
    if not path.is_dir():
        raise DataError(f"--images {path} is no directory; name a folder of images, or files with --image")
    files, left_out = list[Path](), Counter[str]()
    for file in sorted(path.iterdir()):
        why = _why_not(file)
        if why is None:
            files.append(file)
        else:
            left_out[why] += 1
    if not files:
        raise DataError(f"--images {path} holds no image; read are {', '.join(sorted(picture_suffixes()))}")
    return Folder(images=files, left_out=left_out)


def _why_not(file: Path) -> str | None:
    if file.name.startswith("."):
        return "hidden"
    if file.is_dir():
        return "folders"
    suffix = file.suffix.lower()
    return None if suffix in picture_suffixes() else f"of a kind that is not read ({suffix or 'without ending'})"
