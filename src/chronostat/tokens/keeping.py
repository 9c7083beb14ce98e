"""``generate()`` with fewer image tokens: placeholders leave the prompt, features leave where they are handed over.

The model's own ``generate()`` gets a prompt with fewer placeholders and, when it asks for the image features, as many
of those. So everything that it derives from the prompt (mask, positions, cache, decode) follows by itself.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chronostat.errors import KnobError
from chronostat.measure.hooks import restorer
from chronostat.models.anatomy import anatomy_of
from chronostat.models.calls import whole_call
from chronostat.models.locate import module_of
from chronostat.models.prepare import image_token_id
from chronostat.tokens.grid import Size, sizes_of
from chronostat.tokens.methods.method import Method
from chronostat.tokens.pictures import output_pictures, output_with_fewer
from chronostat.tokens.requests import Request, by_name, joined, request_of

_ENCODE = "get_image_features"
_POSITIONS = "get_rope_index"  # the library's name for positions in more than one dimension
_POSITION_MASK = "image_embeds_position_mask"  # says where images are in the place of a placeholder (Kosmos-2)


class ImageKeeper(ABC):
    """Keeps some of the image tokens of every ``generate()`` of a model.

    Args:
        model: one that ``keeper_of`` accepts.
        method: how they are chosen.
        count: from the number of image tokens of a request to the number that is kept.
    """

    def __init__(self, model: PreTrainedModel, method: type[Method], count: Callable[[int], int]) -> None:
        self._model = model
        self._method = method
        self._count = count
        self._request: Request | None = None

    @contextmanager
    def installed(self) -> Generator[None]:
        """On the model, for the length of the ``with``."""
        with ExitStack() as undo:
            self._wrap(undo, self._model, "generate", self._generate)
            self._install(undo)
            yield

    @abstractmethod
    def _install(self, undo: ExitStack) -> None:
        """What is set beside ``generate()``."""

    @abstractmethod
    def _answer(self, original: Callable[..., Any], request: Request) -> Any:  # noqa: ANN401
        """What ``generate()`` returns for the request with the tokens that are kept."""

    def _wrap(self, undo: ExitStack, owner: nn.Module, name: str, wrapper: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        undo.callback(restorer(owner, name))
        setattr(owner, name, functools.wraps(original)(functools.partial(wrapper, original)))

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if self._request is not None:
            return original(*args, **kwargs)  # one entrance of the model leads to another
        named = by_name(self._model, original, args, kwargs)
        request = self._request = request_of(self._model, named, self._method, self._count)
        if request is None:
            return original(*args, **kwargs)
        try:
            with whole_call(self._model, named):
                output = self._answer(original, request)
        finally:
            self._request = None
        if not request.handed:
            raise KnobError(
                f"image_keep: {type(self._model).__name__} encoded the image by other means than {self._source_name}; "
                "its answer is not of the tokens that were kept; leave image_keep out"
            )
        return output

    @property
    @abstractmethod
    def _source_name(self) -> str:
        """What hands the features over."""

    def _unlike(self, request: Request) -> KnobError:
        return KnobError(
            f"image_keep: {self._source_name} of {type(self._model).__name__} does not make one feature for each of "
            f"{len(request.places)} placeholders, so it is not known which belong together; leave image_keep out"
        )


class ByEncoding(ImageKeeper):
    """Where a method of the model encodes its images, as with most models.

    It is called before ``generate()`` begins, and hands over what it gave then when ``generate()`` calls it. Positions
    that depend on where a token lies in its image are computed of the whole prompt; each kept token has its own.
    """

    def __init__(self, model: PreTrainedModel, method: type[Method], count: Callable[[int], int]) -> None:
        super().__init__(model, method, count)
        self._source: Any = _encoding_module(model)

    @property
    def _source_name(self) -> str:
        return f"{_ENCODE}()"

    def _install(self, undo: ExitStack) -> None:
        self._wrap(undo, self._source, _ENCODE, self._encode)
        for module in self._model.modules():
            if hasattr(type(module), _POSITIONS):
                self._wrap(undo, module, _POSITIONS, self._positions)

    def _answer(self, original: Callable[..., Any], request: Request) -> Any:  # noqa: ANN401
        encode = getattr(self._source, _ENCODE)  # with what measures it, where that is set
        given = {name: request.call[name] for name in inspect.signature(encode).parameters if name in request.call}
        with torch.no_grad():  # as generate() does, which has not begun
            encode(**given, return_dict=True)
        return original(**request.shortened(given))

    def _encode(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        request = self._request
        if request is None:
            return original(*args, **kwargs)
        if request.columns is not None:
            request.handed = True
            return request.output
        sizes = sizes_of(kwargs)  # read before the tower runs: the host would wait for it
        with request.method.encoding():
            output = original(*args, **kwargs)
        request.output = self._fewer(request, output, sizes)
        return request.output

    def _fewer(self, request: Request, output: Any, sizes: Sequence[Sequence[Size]]) -> Any:  # noqa: ANN401
        """The output with the features that are kept; settles which they are."""
        pictures = output_pictures(output, len(request.places))
        if pictures is None:
            raise self._unlike(request)
        selections, lengths = request.choose(pictures, sizes), [len(features) for features in pictures]
        request.keep(joined(selections, lengths))
        return output_with_fewer(
            output, lengths, lambda parts: [chosen.of(one) for chosen, one in zip(selections, parts, strict=True)]
        )

    def _positions(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Positions of the whole prompt, of which the kept ones are taken; the answer goes on where the prompt ends."""
        request = self._request
        bound = inspect.signature(original).bind(*args, **kwargs)
        if request is None or request.columns is None or not _is_of(bound.arguments.get("input_ids"), request.columns):
            return original(*args, **kwargs)
        for name, value in bound.arguments.items():
            if _is_of(value, request.columns):
                bound.arguments[name] = self._whole(request, name)
        positions, deltas = original(*bound.args, **bound.kwargs)
        return positions[..., request.columns.to(positions.device)], deltas + request.left_out

    def _whole(self, request: Request, name: str) -> Tensor:
        """What an argument is for the whole prompt."""
        given = request.call.get(name)
        if isinstance(given, Tensor):
            return given
        if name == "attention_mask":
            return torch.ones_like(request.call["input_ids"])
        kind = type(self._model).__name__
        raise KnobError(f"image_keep: {kind} computes positions from {name}, which the request does not hold")


class ByProjector(ImageKeeper):
    """Where a model encodes its images inside its own ``generate()``: features leave at the exit of its projector.

    Which ones is not known before, so of each row of placeholders the last ones leave, as many as features of theirs.
    It does not matter which, since they are alike and positions are counted in one dimension.
    """

    @property
    def _source_name(self) -> str:
        return _projector(self._model) or ""

    def _install(self, undo: ExitStack) -> None:
        projector = self._model.get_submodule(self._source_name)
        undo.callback(projector.register_forward_hook(self._project).remove)

    def _answer(self, original: Callable[..., Any], request: Request) -> Any:  # noqa: ANN401
        request.keep_firsts()
        with request.method.encoding():
            return original(**request.shortened({}))

    def _project(self, _: nn.Module, args: object, output: Any) -> Any:  # noqa: ANN401
        request = self._request
        if request is None or request.handed:
            return output
        request.handed = True
        features = output[0] if isinstance(output, tuple) else output
        rows = features.reshape(-1, features.shape[-1])
        if len(rows) != len(request.places):
            raise self._unlike(request)
        pictures = rows.split(request.rows)
        chosen = zip(request.choose(pictures, []), pictures, strict=True)
        fewer = torch.cat([selection.of(picture) for selection, picture in chosen]).unsqueeze(0)
        return (fewer, *output[1:]) if isinstance(output, tuple) else fewer


def keeper_of(model: PreTrainedModel) -> type[ImageKeeper]:
    """How image tokens are kept on a model.

    Raises:
        KnobError: the model does not merge image features into its prompt; says why.
    """
    generative: Any = type(model)
    name, own = generative.__name__, inspect.unwrap(generative.generate)
    masked = any(_POSITION_MASK in inspect.signature(taker).parameters for taker in (own, generative.forward))
    if image_token_id(model) is None and not masked:
        raise KnobError(
            f"image_keep: the configuration of {name} names no image placeholder, so its images take no places in the "
            "prompt that could be left out"
        )
    merges_itself = "masked_scatter" in own.__code__.co_names and _ENCODE not in own.__code__.co_names
    if (masked or merges_itself) and _projector(model) is not None:
        return ByProjector
    if not any(hasattr(type(module), _ENCODE) for module in model.modules()):
        raise KnobError(
            f"image_keep: {name} has no {_ENCODE}(), so its image features do not take the places of embeddings of the "
            "prompt (they are read by cross-attention, for example)"
        )
    return ByEncoding


def _encoding_module(model: PreTrainedModel) -> nn.Module:
    """The innermost module that encodes images; outer ones lead to it."""
    return [module for module in model.modules() if hasattr(type(module), _ENCODE)][-1]


def _projector(model: PreTrainedModel) -> str | None:
    """The last projector in the order of the model's modules."""
    order = {path: place for place, (path, _) in enumerate(model.named_modules())}
    found = [path for path in anatomy_of(model).projector if module_of(model, path)[1] is None]
    return max(found, key=order.__getitem__, default=None)


def _is_of(value: object, columns: Tensor) -> bool:
    """Whether an argument belongs to a prompt of so many tokens."""
    return isinstance(value, Tensor) and value.shape[:2] == (1, len(columns))
