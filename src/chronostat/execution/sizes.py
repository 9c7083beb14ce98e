"""How big a request is under each setting, known before it is executed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import DataError
from chronostat.execution.execute import BatchRequest, Request, SampleRequest
from chronostat.knobs.base import Knob
from chronostat.knobs.registry import KNOBS, applied, find_knob
from chronostat.knobs.space import ActionSpace
from chronostat.knobs.vision.counting import Line, Seen, approximate, counters_of, fitted
from chronostat.knobs.vision.own_counts import Counter, Shape
from chronostat.models.prepare import count_image_tokens, image_token_id, prepare, prompt_length
from chronostat.records import KnobValue, Setting

_KNOB = "vision_tokens"
_ALONE: tuple[Shape, ...] = (
    (64, 64),
    (224, 224),
    (336, 336),
    (480, 640),
    (640, 480),
    (600, 900),
    (1000, 1000),
    (300, 1200),
    (1000, 250),
    (200, 1100),
    (250, 700),
    (960, 450),
)
_TOGETHER: tuple[tuple[Shape, ...], ...] = (
    ((600, 900), (250, 700)),
    ((64, 64), (480, 640)),
    ((300, 1200), (640, 480), (224, 224)),
    ((1000, 250), (600, 900), (480, 640)),
)
_PROMPT = "a b c"
_REMEMBERED = 4096  # requests of different shapes, and prompts


@dataclass(frozen=True, kw_only=True)
class _Level:
    """How many tokens some pictures bring under one value of ``vision_tokens``: of one alone, of several.

    Attributes:
        image: those that the language model reads of the pictures.
        marks: all others of the prompt beside the user's text: the chat template's, and around the pictures.
    """

    image: tuple[Line, Line]
    marks: tuple[Line, Line]

    def tokens(self, shapes: Sequence[Shape]) -> tuple[float, float]:
        several = len(shapes) > 1
        return self.image[several](shapes), self.marks[several](shapes)


class RequestSizes:
    """Image and text tokens of a request under each setting of a space, by the processor's own arithmetic.

    What that arithmetic means is seen when this is made, on a few blank pictures that are prepared: half a second with
    small tiles, up to three with large ones. Where it does not explain them, a picture's tokens are those of
    the nearest of these.

    Args:
        model: the model.
        processor: of its samples; None where all requests are ready batches.
        space: the settings, length S.

    Attributes:
        exact: for each value of ``vision_tokens`` (None: the space has no such knob) whether image tokens are counted.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | None, space: ActionSpace) -> None:
        self._model = model
        reading = [name for name in space.levels if KNOBS[name].reads is not Knob.reads]
        self._readers = {name: find_knob(name, model, processor) for name in reading}
        each = [Setting({n: v for n, v in s.items() if n in (_KNOB, *reading)}) for s in space.settings]
        self._kinds = list(dict.fromkeys(each))  # settings that read alike
        self._kind_of = np.array([self._kinds.index(setting) for setting in each])  # [S]
        values = dict.fromkeys(kind.get(_KNOB) for kind in self._kinds)
        self._levels = {} if processor is None else {value: _level(model, processor, value) for value in values}
        self.exact = {value: all(line.exact for line in level.image) for value, level in self._levels.items()}
        self._of_shapes = lru_cache(_REMEMBERED)(self._count)
        self._of_prompt = None if processor is None else lru_cache(_REMEMBERED)(_prompt_counter(processor))

    def __call__(self, request: Request) -> NDArray[np.float64]:
        """Tokens of a request.

        Returns:
            [S, 2] image tokens and text tokens, placeholders of images not among them; NaN where a ready batch does not
            say.

        Raises:
            DataError: a sample, and these sizes were made without a processor.
        """
        if isinstance(request, BatchRequest):
            return self._of_batch(
                count_image_tokens(self._model, request.batch), _text_tokens(self._model, request.batch)
            )
        if self._of_prompt is None:
            raise DataError(f"sample {request.sample.id} needs its processor: make RequestSizes with it")
        return self.of(_shapes(request), self._of_prompt(request.sample.prompt))

    def of(self, shapes: tuple[Shape, ...], text_tokens: int) -> NDArray[np.float64]:
        """Tokens of a sample that need not be loaded, shape [S, 2].

        Args:
            shapes: height and width of its pictures in pixels.
            text_tokens: of its prompt.
        """
        tokens = self._of_shapes(shapes)[self._kind_of]
        tokens[:, 1] += text_tokens
        return tokens

    def _of_batch(self, image: int | None, text: int | None) -> NDArray[np.float64]:
        read = [np.nan if image is None else self._read(kind, image) for kind in self._kinds]
        return np.column_stack([read, np.full(len(read), np.nan if text is None else text)])[self._kind_of]

    def _read(self, kind: Setting, image_tokens: int) -> float:
        """How many image tokens of those that the processor made the language model reads."""
        for name, knob in self._readers.items():
            image_tokens = knob.reads(kind[name], image_tokens)
        return float(image_tokens)

    def _count(self, shapes: tuple[Shape, ...]) -> NDArray[np.float64]:
        """Image tokens and marks under each kind of setting, [kinds, 2]."""
        made = {value: level.tokens(shapes) for value, level in self._levels.items()}
        counted: list[tuple[float, float]] = []
        for kind in self._kinds:
            image, marks = made[kind.get(_KNOB)]
            counted.append((self._read(kind, round(image)), marks))
        return np.array(counted, dtype=np.float64)


def _shapes(request: SampleRequest) -> tuple[Shape, ...]:
    return tuple((image.height, image.width) for image in request.images)


def _prompt_counter(processor: ProcessorMixin) -> Callable[[str], int]:
    """How many tokens a text is, without a chat template around it."""
    tokenizer: Any = getattr(processor, "tokenizer")  # noqa: B009 - the base class does not declare it
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:  # half the time
        return lambda prompt: len(fast.encode(prompt, add_special_tokens=False).ids)
    return lambda prompt: len(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def _level(model: PreTrainedModel, processor: ProcessorMixin, value: KnobValue | None) -> _Level:
    setting = Setting() if value is None else Setting({_KNOB: value})
    prompt = _prompt_counter(processor)(_PROMPT)
    image: list[Seen] = []
    marks: list[Seen] = []
    with applied(setting, model, processor) as image_arguments:
        counters = counters_of(processor, image_arguments)
        for shapes in (*((shape,) for shape in _ALONE), *_TOGETHER):
            try:
                batch = prepare(
                    processor,
                    [Image.new("RGB", (width, height)) for height, width in shapes],
                    _PROMPT,
                    device=torch.device("cpu"),
                    dtype=torch.float32,
                    image_arguments=image_arguments,
                )
            except DataError:
                if len(shapes) > 1:
                    break  # it takes one picture a request, and will say so to whoever asks for more
                raise
            image.append(Seen(shapes=shapes, tokens=count_image_tokens(model, batch) or 0))
            marks.append(Seen(shapes=shapes, tokens=(_text_tokens(model, batch) or prompt) - prompt))
    return _Level(image=_lines(counters, image), marks=_lines(counters, marks))


def _lines(counters: Sequence[Counter], seen: Sequence[Seen]) -> tuple[Line, Line]:
    """For one picture and for several: the same line, or one for each, or by the nearest ones."""
    both = fitted(counters, seen)
    if both is not None:
        return both, both
    groups = [[each for each in seen if (len(each.shapes) > 1) == several] for several in (False, True)]
    alone, several = (fitted(counters, group) if group else None for group in groups)
    nearest = approximate(seen)
    return alone or nearest, several or nearest


def _text_tokens(model: PreTrainedModel, batch: Mapping[str, Any]) -> int | None:
    """Tokens of the prompt that stand for no image; None where the batch holds neither ids nor embeddings."""
    length, ids = prompt_length(batch), batch.get("input_ids")
    if length is None or ids is None:
        return length
    places = batch.get("image_input_idx")  # the first Molmo generation names the places
    if places is not None:
        return length - int((places >= 0).sum())
    token = image_token_id(model)
    return length if token is None else length - int((ids == token).sum())
