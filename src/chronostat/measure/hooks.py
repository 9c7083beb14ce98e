"""The stage recorder: sees the stages of one ``generate()`` from hooks, and takes everything down afterwards.

Definitions: docs/definitions.md. Hooks only note moments; nothing is computed or synchronised while the model runs.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import get_ident
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel, StoppingCriteria

from chronostat.measure.clock import Clock, Mark, TimeLimit
from chronostat.measure.cross_checks import StreamCheck
from chronostat.measure.outside import OutsideHooks, outermost
from chronostat.measure.replays import Replayed, listen, seen_in_replays
from chronostat.models.anatomy import Anatomy
from chronostat.models.blocks import running_blocks
from chronostat.models.compiled import leaves_outside_graphs, require_hooks_fire
from chronostat.models.locate import ancestors, module_of

ENCODE, FORWARD, VISION, PROJECTOR, BLOCKS = (
    "image encoding",
    "prefill forward",
    "vision",
    "projector",
    "decoder blocks",
)


class TokenMarks(StoppingCriteria):
    """Takes a mark for each new token: ``generate()`` asks once per token whether to stop; this never says so.

    Attributes:
        marks: one for each token, or for each round of beams and assisted decoding.
        sequence: what it was asked about last, shape [batch, tokens].
        first_length: tokens of the sequence when it was first asked: the prompt as the loop sees it, and the first
            new token. Some models shorten or drop the prompt before their language model generates.
    """

    def __init__(self, clock: Clock, limit: TimeLimit, streams: StreamCheck, at_first: Callable[[], None]) -> None:
        self._clock = clock
        self._limit = limit
        self._streams = streams
        self._at_first = at_first
        self._never = torch.zeros(0, dtype=torch.bool)
        self.marks: list[Mark] = []
        self.sequence: torch.Tensor | None = None
        self.first_length = 0

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - the base class is annotated for tuples
        self, input_ids: torch.Tensor, scores: object, **_: object
    ) -> torch.Tensor:
        """Shape [batch], all False."""
        first = not self.marks
        if first:
            self.first_length = input_ids.shape[1]
            self._at_first()  # before the mark: taking hooks out is part of neither prefill nor decode
        self.marks.append(self._streams.mark() if first else self._clock.mark())
        self.sequence = input_ids
        self._limit.check()
        if len(self._never) != len(input_ids):  # one tensor for all tokens: each new one is a kernel to launch
            self._never = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return self._never


@dataclass
class Span:
    """The calls of one stage before the first token: finished ones, and the depth of the one that is open.

    Attributes:
        missed: some of the stage's work ran while no call of it was open.
        elsewhere: some of the stage's work ran in another thread.
        called: modules whose calls were seen, by identity.
    """

    finished: list[tuple[Mark, Mark]] = field(default_factory=list[tuple[Mark, Mark]])
    depth: int = 0
    start: Mark | None = None
    missed: bool = False
    elsewhere: bool = False
    called: set[int] = field(default_factory=set[int])


class StageRecorder:
    """Context manager around one ``generate()`` call.

    Only calls before the first token are recorded, and of nested calls of one stage only the outermost. At the first
    token all hooks are taken out, before a compiled decode step could trace them.

    Args:
        model: the model whose ``generate`` will run.
        anatomy: its parts.
        clock: takes the marks.
        limit: on the whole call; looked at in every hook and at every token.
        streams: takes the marks at the end of each stage and at the first token.
        chunked: whether the prefill runs in chunks, which ``generate()`` compiles where it compiles decode steps.

    Attributes:
        spans: calls by stage.
        tokens: the criterion to pass to ``generate()``.
        must_be_called: stages, and modules of theirs that have to be called for every image, by identity.
        ran: some part of the model was seen to run.
        outside: modules with weights that ran while no stage was open, by path.
        compiled: ``generate()`` compiled the decode step.
        replayed: the blocks of the prefill ran in a replay.
        captured: why the next call will be faster, where something was captured in this one.

    Raises:
        ModelError: a part lies in a compiled module.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        clock: Clock,
        *,
        limit: TimeLimit,
        streams: StreamCheck,
        chunked: bool,
    ) -> None:
        entries = (*anatomy.vision, *anatomy.projector)
        modules = [path if module_of(model, path)[1] is None else path.rpartition(".")[0] for path in entries]
        require_hooks_fire(model, (*modules, *anatomy.encoders, *anatomy.blocks))
        self._clock = clock
        self._limit = limit
        self._streams = streams
        self._chunked = chunked
        self._installed = ExitStack()
        self._model: nn.Module | None = model
        self._anatomy = anatomy
        self._thread = get_ident()
        self.spans: defaultdict[str, Span] = defaultdict(Span)
        self.must_be_called: list[tuple[str, int]] = []
        self.tokens = TokenMarks(clock, limit, streams, self._first_token)
        self.outside: dict[str, None] = {}
        self._inside: dict[int, Callable[[], None]] = {}  # what notices that a part runs, by identity
        self.ran = False
        self.compiled = False
        self._wrapped: dict[int, str] = {}
        self._past_wrapped = False
        self.replayed = False
        self.captured: str | None = None

    def __enter__(self) -> Self:
        assert self._model is not None
        with ExitStack() as undo_if_interrupted:
            undo_if_interrupted.callback(self._installed.close)
            self._install(self._model)
            self._stop_listening = listen(self._model, self._note_replay)
            undo_if_interrupted.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._installed.close()
        self._stop_listening()
        self._model = None

    def _first_token(self) -> None:
        if all(span.depth == 0 for span in self.spans.values()):  # else a module is going through its hooks now
            self._installed.close()

    def _install(self, model: nn.Module) -> None:
        anatomy = self._anatomy
        self._hook(model, model, FORWARD)
        if _generates_on_its_own(model):
            self._install_beside_own_generate(model)
        self._install_around_parts(model)
        blocks = running_blocks(model, anatomy.blocks)
        self._hook(blocks[0], blocks[-1], BLOCKS)
        self._notice_running(blocks[0])
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                self._see_compiling(module)
        self._wrap_encoding(model)
        outside = OutsideHooks(alone=self._alone, begin=lambda: self._open(ENCODE), end=lambda: self._close(ENCODE))
        self.outside = outside.seen
        for remove in outside.install(model, anatomy):
            self._installed.callback(remove)

    def _install_around_parts(self, model: nn.Module) -> None:
        for stage in (VISION, PROJECTOR, ENCODE):
            for path in self._paths(stage):
                module, method = module_of(model, path)
                if method is None:
                    self._hook(module, module, stage)
                else:
                    self._wrap(module, method, stage)
                if stage != ENCODE:  # a text encoder may share its embedding with the decoder
                    self._watch(module, stage)
        for path in self._anatomy.vision:
            tower, _ = module_of(model, path)
            if _is_image_tokenizer(tower):  # used through this method, never through its forward
                self._wrap(tower, "encode", VISION)

    def _wrap_encoding(self, model: nn.Module) -> None:
        """Methods that encode images before the first forward, where ``generate()`` leads to them.

        Of each module whose class has ``get_image_features``: an object that only passes attributes on has none, and
        is never asked. And what a call that was followed has shown.
        """
        entries = {f"{path}.get_image_features".lstrip("."): module for path, module in model.named_modules()}
        for entry, module in entries.items():
            if hasattr(type(module), "get_image_features"):
                self._wrapped[id(module)] = entry
                self._wrap(module, "get_image_features", ENCODE)
        for entry in self._anatomy.encode:
            module, method = module_of(model, entry)
            if method is not None and entries.get(entry) is not module:
                self._wrapped[id(module)] = entry
                self._wrap(module, method, ENCODE)

    def _install_beside_own_generate(self, model: nn.Module) -> None:
        """Some models encode image and text there, and leave the rest to the ``generate()`` of a model inside them.

        Then the outer forward is never called.
        """
        for path in ancestors(self._anatomy.block_list):
            around_blocks = model.get_submodule(path)
            if around_blocks is not model and isinstance(around_blocks, GenerationMixin):
                self._hook(around_blocks, around_blocks, FORWARD)

    def _alone(self) -> bool:
        """Whether no stage is open before the first token."""
        return not self.tokens.marks and all(span.depth == 0 for span in self.spans.values())

    def _hook(self, first: nn.Module, last: nn.Module, stage: str) -> None:
        """Record from the entry of ``first`` to the exit of ``last``, also when the model raises."""
        identity = id(first)

        def enter(*_: object) -> None:
            self._open(stage, identity)

        def leave(*_: object) -> None:
            self._close(stage)

        if stage == BLOCKS:  # a replay tells of them
            enter, leave = seen_in_replays(enter), seen_in_replays(leave)
        before = first.register_forward_pre_hook(enter, prepend=True)
        self._installed.callback(before.remove)
        after = last.register_forward_hook(leave, always_call=True)
        self._installed.callback(after.remove)

    def _watch(self, module: nn.Module, stage: str) -> None:
        """Notice when the inside of ``module`` runs although no call of its stage is open.

        Hooks do not fire where a model calls ``module.forward()`` or a method of its own; those inside still do. With
        nothing inside, the module has to be called for every image.
        """
        inside = next(leaves_outside_graphs(module), None)
        if inside is None:
            self.must_be_called.append((stage, id(module)))
            return

        @seen_in_replays
        def notice(*_: object) -> None:
            span = self.spans[stage]
            span.missed |= span.depth == 0 and not self.tokens.marks
            span.elsewhere |= get_ident() != self._thread
            self.ran = True

        self._inside[id(module)] = notice
        self._installed.callback(inside.register_forward_pre_hook(notice).remove)

    def _notice_running(self, block: nn.Module) -> None:
        """See that the model runs, also where it calls ``block.forward()``."""
        inside = next(leaves_outside_graphs(block), None)
        if inside is None:
            return

        @seen_in_replays
        def notice(*_: object) -> None:
            self.ran = True

        self._installed.callback(inside.register_forward_pre_hook(notice).remove)

    def _note_replay(self, replayed: Replayed) -> None:
        """The blocks ran in a replay: where no hook of theirs fired, it brings their marks. Or a part beside them."""
        self.ran = True
        self.captured = self.captured or replayed.captured
        if replayed.part is not None:
            self._inside.get(id(replayed.part), lambda: None)()
            return
        if self.tokens.marks:
            return
        self.replayed = True
        if replayed.blocks is not None:
            self.spans[BLOCKS].finished.append(replayed.blocks)

    def _see_compiling(self, module: PreTrainedModel) -> None:
        """Notice that ``generate()`` compiles its decode step; a prefill in chunks it compiles as well."""
        original = module.get_compiled_call

        @seen_in_replays
        @functools.wraps(original)
        def seen(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through
            self.compiled = True
            if self._chunked:
                self._installed.close()
            return original(*args, **kwargs)

        self._installed.callback(restorer(module, "get_compiled_call"))
        module.get_compiled_call = seen

    def _wrap(self, owner: nn.Module, name: str, stage: str) -> None:
        """Record the calls of a method."""
        original: Callable[..., Any] = getattr(owner, name)
        identity = id(owner)

        @functools.wraps(original)  # generate() reads the signature
        def recorded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever the method takes
            self._open(stage, identity)
            try:
                return original(*args, **kwargs)
            finally:
                self._close(stage)

        self._installed.callback(restorer(owner, name))
        setattr(owner, name, recorded)

    def _open(self, stage: str, caller: int | None = None) -> None:
        self._limit.check()
        self.ran = True
        if self.tokens.marks:
            return
        span = self.spans[stage]
        span.elsewhere |= get_ident() != self._thread
        if caller is not None:
            span.called.add(caller)
        if stage in {VISION, PROJECTOR}:
            self._past_wrapped |= not any(
                self.spans[around].depth for around in (ENCODE, FORWARD) if around in self.spans
            )
        if span.depth == 0:
            span.start = self._clock.mark()
        span.depth += 1

    def _close(self, stage: str) -> None:
        span = self.spans[stage]
        if self.tokens.marks or span.depth == 0:
            return
        span.depth -= 1
        if span.depth == 0 and span.start is not None:
            # of each stage: after the next wait of the host no stream shows which one a mark was on
            span.finished.append((span.start, self._streams.mark()))

    def _paths(self, stage: str) -> tuple[str, ...]:
        """Where the modules of a stage are that may run anywhere before the first token."""
        anatomy = self._anatomy
        return {VISION: anatomy.vision, PROJECTOR: anatomy.projector, ENCODE: anatomy.encoders}[stage]

    def _called(self, stage: str) -> set[int]:
        return self.spans[stage].called if stage in self.spans else set()

    def doubts(self) -> Iterator[str]:
        """What ran where no stage was open; where the forward itself was not seen, that is the reason."""
        outside = outermost(self.outside)
        if outside and FORWARD in self.spans:
            yield (
                f"{', '.join(outside)} ran before the first token outside every stage; name what carries the image to "
                f'the language model, as model.layout.projector = "{outside[0]}" or with --layout'
            )
        if self._past_wrapped and self._wrapped and not self._wrapped.keys() & self._called(ENCODE):
            yield (
                f"the image was encoded, but {', '.join(self._wrapped.values())} was not called: something takes the "
                "place of the model; measure the model that generates itself"
            )

    @property
    def with_parts(self) -> tuple[str, ...]:
        """The stages, beside the forward and its blocks, that this model has modules for."""
        return tuple(stage for stage in (ENCODE, VISION, PROJECTOR) if self._paths(stage))


def restorer(owner: object, name: str) -> Callable[[], None]:
    """What undoes a later ``setattr(owner, name, ...)`` on the object itself."""
    own = vars(owner)
    return (
        functools.partial(setattr, owner, name, own[name]) if name in own else functools.partial(delattr, owner, name)
    )


def _generates_on_its_own(model: nn.Module) -> bool:
    definer = next((kind for kind in type(model).__mro__ if "generate" in vars(kind)), None)
    return definer is not GenerationMixin


def _is_image_tokenizer(module: nn.Module) -> bool:
    return isinstance(getattr(module, "quantize", None), nn.Module) and hasattr(module, "encode")
