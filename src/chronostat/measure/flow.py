"""Which modules an image goes through on its way into the language model, seen in one ``generate()`` call.

Names of modules are hints. What the vision tower returns goes into the projector, and what comes out of that is merged
into the embeddings of the text: this is followed here, operation by operation, up to the first decoder block. Following
changes no result, but takes time: the call that is followed is not one whose latency is used.
"""

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from torch import nn

from chronostat.measure.arguments import IMAGE_KEYS
from chronostat.measure.colours import Colour, Colours, tensors_in
from chronostat.measure.hooks import restorer
from chronostat.models.anatomy import Anatomy, anatomy_of, remember
from chronostat.models.blocks import running_blocks
from chronostat.models.calls import watching_calls
from chronostat.models.locate import library_part, within

_LIBRARY = "transformers.generation"  # its methods surround the whole call
_ENTRANCES = {"generate", "__call__", "_call_impl", "_wrapped_call_impl"}


@dataclass(frozen=True)
class _Frame:
    """A method of one of the model's modules that is running."""

    identity: int
    path: str
    method: str

    @property
    def entry(self) -> str:
        """Path of the method."""
        return f"{self.path}.{self.method}".lstrip(".")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One outermost call of a module beside the language model, the tower's among them.

    Attributes:
        entry: path of the module, or of its method where the module itself is not called.
        takes: colours of each tensor that goes in.
        inside: methods of the modules that hold the tower, in which this ran, the innermost first; empty inside the
            forward of what holds the decoder blocks.
    """

    entry: str
    takes: tuple[Colour, ...]
    inside: tuple[_Frame, ...]

    @property
    def takes_features(self) -> bool:
        """Whether some of what goes in came from the vision tower and has not met the text."""
        return any(Colour.FEATURES in colour and Colour.TEXT not in colour for colour in self.takes)

    @property
    def takes_text(self) -> bool:
        """Whether text goes in, alone or merged."""
        return any(Colour.TEXT in colour for colour in self.takes)

    @property
    def takes_image(self) -> bool:
        """Whether the image itself goes in, past the tower."""
        return any(Colour.IMAGE in colour and colour & ~Colour.IMAGE == Colour.NOTHING for colour in self.takes)


@dataclass(kw_only=True)
class Flow:
    """What was seen before the first decoder block."""

    tower: list[Step] = field(default_factory=list[Step])
    beside: list[Step] = field(default_factory=list[Step])

    @property
    def saw_image(self) -> bool:
        """Whether there was an image to follow."""
        return bool(self.tower) or any(step.takes_image for step in self.beside)


@contextmanager
def parts_followed(model: nn.Module) -> Generator[None]:
    """Follow the image through the first ``model.generate()`` inside the ``with``; later ones find the parts it showed.

    A projector that is not named like one is found, a module that is named like one and is none is left out, and what
    takes the image without being a known part makes the stages of this model doubtful. What ``layout`` has named stays.
    """
    watched: Any = model
    original, restore = watched.generate, restorer(model, "generate")
    anatomy, flows, opened = anatomy_of(model), list[Flow](), list[Flow]()

    @contextmanager
    def following(arguments: dict[str, Any]) -> Generator[None]:
        if flows or opened:
            yield
            return
        opened.append(Flow())
        try:
            with _following(model, anatomy, opened[0], arguments):
                yield
            flows.extend(opened)
        finally:
            opened.clear()

    @functools.wraps(original)
    def followed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever generate takes
        with following(kwargs):
            return original(*args, **kwargs)

    watched.generate = followed
    try:
        with watching_calls(model, following):
            yield
    finally:
        restore()
    if flows and flows[0].saw_image:
        remember(model, corrected(anatomy, flows[0]))


def corrected(anatomy: Anatomy, flow: Flow) -> Anatomy:
    """The anatomy by what flows; as it was where no call of the vision tower was seen.

    Between what takes features alone and what takes features and text, as a resampler that reads the question does,
    the name decides.
    """
    known = (*anatomy.vision, *anatomy.projector, *anatomy.encoders)
    strange = tuple(
        dict.fromkeys(
            step.entry for step in flow.beside if step.takes_image and not any(within(step.entry, p) for p in known)
        )
    )
    doubts = (_doubt(strange),) if strange and "vision" not in anatomy.given else ()
    if not flow.tower:
        return replace(anatomy, doubts=doubts)
    inside = [path for path in anatomy.projector if any(within(path, tower) for tower in anatomy.vision)]
    through = [
        step
        for step in flow.beside
        if step.takes_features and (not step.takes_text or any(within(step.entry, p) for p in anatomy.projector))
    ]
    projector = tuple(dict.fromkeys([*inside, *(step.entry for step in through)]))
    return replace(
        anatomy,
        projector=anatomy.projector if "projector" in anatomy.given else projector,
        encode=_common_method(flow.tower, through),
        doubts=doubts,
    )


def _doubt(strange: tuple[str, ...]) -> str:
    return (
        f"{', '.join(strange)} took the image and is no known part; name it with model.layout or --layout, as "
        f'vision = "{strange[0]}", with all other parts of the kind'
    )


def _common_method(tower: list[Step], through: list[Step]) -> tuple[str, ...]:
    """The innermost method in which the tower and what follows it ran, where that is no forward around the blocks."""
    shared = [frame for frame in tower[0].inside if all(frame in step.inside for step in [*tower, *through])]
    return tuple(frame.entry for frame in shared[:1])


@contextmanager
def _following(model: nn.Module, anatomy: Anatomy, flow: Flow, arguments: Mapping[str, Any]) -> Generator[None]:
    follower = _Follower(model, anatomy, flow)
    for key in IMAGE_KEYS:
        follower.colours.give(arguments.get(key), Colour.IMAGE)
    with ExitStack() as undo:
        follower.install(undo)
        follower.colours.__enter__()
        undo.callback(follower.stop)
        yield


class _Follower:
    """The hooks of one call."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, flow: Flow) -> None:
        self.colours = Colours()
        self._model = model
        self._anatomy = anatomy
        self._flow = flow
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._parts = (*anatomy.vision, *anatomy.encoders, anatomy.block_list)
        self._text = library_part(model, "get_input_embeddings")
        self._depth = 0
        self._on = True
        self._left = False

    def install(self, undo: ExitStack) -> None:
        """Set all hooks."""
        for path, module in self._model.named_modules():
            if path in self._anatomy.vision:
                self._around(undo, module, functools.partial(self._note, path, self._flow.tower), self._leave_tower)
            elif path and path == self._text:
                self._around(undo, module, None, self._leave_text)
            elif self._lies_beside(path, module):
                self._around(undo, module, functools.partial(self._enter, path), self._leave)
        first = running_blocks(self._model, self._anatomy.blocks)[0]
        undo.callback(first.register_forward_pre_hook(self.stop, prepend=True).remove)

    def stop(self, *_: object) -> None:
        """See nothing any more."""
        self._on = False
        if not self._left:
            self._left = self.colours.leave()

    def _lies_beside(self, path: str, module: nn.Module) -> bool:
        """Whether a module with weights holds none of the large parts, and lies in none but an encoder of text."""
        inside = (*self._anatomy.vision, self._anatomy.block_list, *([self._text] if self._text else []))
        return (
            any(True for _ in module.parameters())
            and not any(within(part, path) for part in self._parts)
            and not any(within(path, part) for part in inside)
        )

    def _around(
        self, undo: ExitStack, module: nn.Module, enter: Callable[[object], None] | None, leave: Callable[..., None]
    ) -> None:
        def entered(_: nn.Module, args: object, kwargs: object) -> None:
            if self._on and enter is not None:
                enter((args, kwargs))

        def left(_: nn.Module, args: object, output: object) -> None:
            if self._on:
                leave(output)

        undo.callback(module.register_forward_pre_hook(entered, with_kwargs=True, prepend=True).remove)
        undo.callback(module.register_forward_hook(left, always_call=True).remove)

    def _enter(self, path: str, inputs: object) -> None:
        if self._depth == 0:
            self._note(path, self._flow.beside, inputs)
        self._depth += 1

    def _leave(self, _: object) -> None:
        self._depth -= 1

    def _leave_tower(self, output: object) -> None:
        self.colours.give(output, Colour.FEATURES)

    def _leave_text(self, output: object) -> None:
        self.colours.give(output, Colour.TEXT)

    def _note(self, path: str, steps: list[Step], inputs: object) -> None:
        frames = list(self._frames())
        own = [frame for frame in frames if frame.path and self._is_beside(frame.path) and within(path, frame.path)]
        entry = own[-1].entry if own else path  # a method of a module that is not called itself, the outermost
        around = [frame for frame in frames if any(within(tower, frame.path) for tower in self._anatomy.vision)]
        forwards = [
            frame for frame in around if frame.method == "forward" and within(self._anatomy.block_list, frame.path)
        ]
        methods = () if forwards else tuple(frame for frame in around if frame.method != "forward")
        steps.append(Step(entry=entry, takes=tuple(map(self.colours.of, tensors_in(inputs))), inside=methods))

    def _is_beside(self, path: str) -> bool:
        return self._lies_beside(path, self._model.get_submodule(path))

    def _frames(self) -> Generator[_Frame]:
        """Methods of the model's modules that are running, the innermost first.

        The caller's frames are left alone: one whose locals were looked at keeps them alive for as long as it runs.
        """
        frame: FrameType | None = inspect.currentframe()
        while frame is not None and not _is_entrance(frame):
            first = next(iter(frame.f_code.co_varnames), None)
            owner = frame.f_locals.get(first) if first and frame.f_code.co_argcount else None
            path = self._paths.get(id(owner)) if isinstance(owner, nn.Module) else None
            method = frame.f_code.co_name
            in_library = str(frame.f_globals.get("__name__", "")).startswith(_LIBRARY)
            if path is not None and method not in _ENTRANCES and not in_library and hasattr(type(owner), method):
                yield _Frame(id(frame), path, method)
            frame = frame.f_back


def _is_entrance(frame: FrameType) -> bool:
    """Whether a frame is where ``generate()`` is followed from."""
    return frame.f_globals is globals() and frame.f_code.co_name == "followed"
