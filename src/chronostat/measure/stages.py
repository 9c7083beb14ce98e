"""The stage recorder: sees the stages of one ``generate()`` from hooks, and takes everything down afterwards.

Definitions: docs/definitions.md. Hooks only note moments; nothing is computed or synchronised while the model runs.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from transformers import GenerationMixin, StoppingCriteria

from chronostat.measure.clock import Clock, Mark
from chronostat.measure.intervals import Interval, length, length_outside
from chronostat.models.anatomy import Anatomy, running_blocks
from chronostat.models.locate import ancestors, library_part
from chronostat.records import StageTiming

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
        first_length: tokens of the sequence when it was first asked: the prompt as the loop sees it, and the first
            new token. Some models shorten or drop the prompt before their language model generates.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.marks: list[Mark] = []
        self.first_length = 0

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - the base class is annotated for tuples
        self, input_ids: torch.Tensor, scores: object, **_: object
    ) -> torch.Tensor:
        """Shape [batch], all False."""
        self.marks.append(self._clock.mark())
        self.first_length = self.first_length or input_ids.shape[1]
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass
class _Span:
    """The calls of one stage before the first token: finished ones, and the depth of the one that is open.

    Attributes:
        missed: some of the stage's work ran while no call of it was open.
        called: modules whose calls were seen, by identity.
    """

    finished: list[tuple[Mark, Mark]]
    depth: int = 0
    start: Mark | None = None
    missed: bool = False
    called: set[int] = field(default_factory=set[int])


class StageRecorder:
    """Context manager around one ``generate()`` call.

    Only calls before the first token are recorded, and of nested calls of one stage only the outermost.

    Args:
        model: the model whose ``generate`` will run.
        anatomy: its parts.
        clock: takes the marks.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, clock: Clock) -> None:
        self._clock = clock
        self._spans: defaultdict[str, _Span] = defaultdict(lambda: _Span([]))
        self._installed = ExitStack()
        self._model: nn.Module | None = model
        self._anatomy = anatomy
        self._must_be_called: list[tuple[str, int]] = []
        self.tokens = TokenMarks(clock)

    def __enter__(self) -> Self:
        assert self._model is not None
        with ExitStack() as undo_if_interrupted:
            undo_if_interrupted.callback(self._installed.close)
            self._install(self._model)
            undo_if_interrupted.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._installed.close()
        self._model = None

    def _install(self, model: nn.Module) -> None:
        anatomy = self._anatomy
        self._hook(model, model, FORWARD)
        if _generates_on_its_own(model):
            self._install_beside_own_generate(model)
        for stage in (VISION, PROJECTOR, ENCODE):
            for path in self._paths(stage):
                module = model.get_submodule(path)
                self._hook(module, module, stage)
                if stage != ENCODE:  # a text encoder may share its embedding with the decoder
                    self._watch(module, stage)
        for path in anatomy.vision:
            tower = model.get_submodule(path)
            if _is_image_tokenizer(tower):  # used through this method, never through its forward
                self._wrap(tower, "encode", VISION)
        blocks = running_blocks(model, anatomy)
        self._hook(blocks[0], blocks[-1], BLOCKS)
        # generate() may encode images before the first forward, through this method of the base model
        base = getattr(model, "base_model", model)
        if hasattr(base, "get_image_features"):
            self._wrap(base, "get_image_features", ENCODE)

    def _install_beside_own_generate(self, model: nn.Module) -> None:
        """Some models encode image and text there, and leave the rest to the ``generate()`` of a model inside them.

        Then the outer forward is never called.
        """
        for path in ancestors(self._anatomy.block_list):
            around_blocks = model.get_submodule(path)
            if around_blocks is not model and isinstance(around_blocks, GenerationMixin):
                self._hook(around_blocks, around_blocks, FORWARD)
        embedding = library_part(model, "get_input_embeddings")
        if embedding is not None:
            module = model.get_submodule(embedding)
            self._hook(module, module, ENCODE)

    def _hook(self, first: nn.Module, last: nn.Module, stage: str) -> None:
        """Record from the entry of ``first`` to the exit of ``last``, also when the model raises."""
        identity = id(first)

        def enter(*_: object) -> None:
            self._open(stage, identity)

        def leave(*_: object) -> None:
            self._close(stage)

        before = first.register_forward_pre_hook(enter, prepend=True)
        self._installed.callback(before.remove)
        after = last.register_forward_hook(leave, always_call=True)
        self._installed.callback(after.remove)

    def _watch(self, module: nn.Module, stage: str) -> None:
        """Notice when the inside of ``module`` runs although no call of its stage is open.

        Hooks do not fire where a model calls ``module.forward()`` or a method of its own; those inside still do. With
        nothing inside, the module has to be called for every image.
        """
        inside = next((part for part in module.modules() if part is not module and _is_leaf_with_weights(part)), None)
        if inside is None:
            self._must_be_called.append((stage, id(module)))
            return

        def notice(*_: object) -> None:
            span = self._spans[stage]
            span.missed |= span.depth == 0 and not self.tokens.marks

        self._installed.callback(inside.register_forward_pre_hook(notice).remove)

    def _wrap(self, owner: nn.Module, name: str, stage: str) -> None:
        """Record the calls of a method."""
        original: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(original)  # generate() reads the signature
        def recorded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever the method takes
            self._open(stage)
            try:
                return original(*args, **kwargs)
            finally:
                self._close(stage)

        own = vars(owner)
        if name in own:
            self._installed.callback(setattr, owner, name, own[name])
        else:
            self._installed.callback(delattr, owner, name)
        setattr(owner, name, recorded)

    def _open(self, stage: str, caller: int | None = None) -> None:
        if self.tokens.marks:
            return
        span = self._spans[stage]
        if caller is not None:
            span.called.add(caller)
        if span.depth == 0:
            span.start = self._clock.mark()
        span.depth += 1

    def _close(self, stage: str) -> None:
        span = self._spans[stage]
        if self.tokens.marks or span.depth == 0:
            return
        span.depth -= 1
        if span.depth == 0 and span.start is not None:
            span.finished.append((span.start, self._clock.mark()))

    def timing(self, *, entry: Mark, total_ms: float, new_tokens: int, sees_image: bool, one_path: bool) -> StageTiming:
        """The stages of the call that has ended and was synchronised.

        Args:
            entry: mark at the entry of ``generate()``.
            total_ms: host time of the whole call.
            new_tokens: length of the answer in tokens.
            sees_image: whether the batch holds an image that has to be encoded.
            one_path: False for beams and assisted decoding, where decode per token has no meaning.

        Returns:
            Source ``measured``, or ``total_only`` where a stage that must have run was not seen as often as it ran.
        """
        unseen = self._unseen(new_tokens=new_tokens, sees_image=sees_image, one_path=one_path)
        steps = len(self.tokens.marks) - 1 if not one_path and self.tokens.marks else max(new_tokens - 1, 0)
        if unseen:
            return StageTiming(
                source="total_only", total_ms=total_ms, new_tokens=new_tokens, decode_steps=steps, unseen=unseen
            )
        marks = [self._clock.between_ms(entry, mark) for mark in self.tokens.marks]
        vision, projector, blocks = (self._intervals(stage, entry) for stage in (VISION, PROJECTOR, BLOCKS))
        prefill = [*self._intervals(ENCODE, entry), *self._intervals(FORWARD, entry), *vision, *projector]
        prefill_ms, decode_ms = length(prefill), marks[-1] - marks[0]
        return StageTiming(
            source="measured",
            total_ms=total_ms,
            new_tokens=new_tokens,
            decode_steps=steps,
            ttft_ms=marks[0],
            prefill_ms=prefill_ms,
            vision_ms=length_outside(vision, projector) if vision else None,
            projector_ms=length(projector) if projector else None,
            llm_prefill_ms=length(blocks),
            prefill_rest_ms=length_outside(prefill, [*vision, *projector, *blocks]),
            decode_ms=decode_ms if steps else None,
            decode_ms_per_token=decode_ms / steps if steps and one_path else None,
            other_ms=total_ms - prefill_ms - decode_ms,
        )

    def _unseen(self, *, new_tokens: int, sees_image: bool, one_path: bool) -> str | None:
        """Names what must have happened and was not seen as often as it did; None if everything was."""
        with_parts = [stage for stage in (ENCODE, VISION, PROJECTOR) if self._paths(stage)]
        must_run = [FORWARD, BLOCKS, *(stage for stage in with_parts if sees_image or stage == ENCODE)]
        reasons = [stage for stage, span in self._spans.items() if span.missed or span.depth > 0]
        if sees_image and not with_parts:
            reasons.append(f"{VISION} (found neither a vision tower nor a projector; name them with model.layout)")
        reasons += [stage for stage in must_run if not self._spans[stage].finished and stage not in reasons]
        silent = {stage for stage, module in self._must_be_called if module not in self._spans[stage].called}
        reasons += sorted(silent.difference(reasons)) if sees_image else []
        passes, forwards = len(self._spans[BLOCKS].finished), len(self._spans[FORWARD].finished)
        if 0 < passes < forwards:
            reasons.append(f"{BLOCKS} in {forwards - passes} of {forwards} forwards")
        marks = len(self.tokens.marks)
        if not marks or (one_path and marks != new_tokens):
            reasons.append(f"{marks} token marks for {new_tokens} tokens")
        return f"not seen: {', '.join(reasons)}" if reasons else None

    def _paths(self, stage: str) -> tuple[str, ...]:
        """Where the modules of a stage are that may run anywhere before the first token."""
        anatomy = self._anatomy
        return {VISION: anatomy.vision, PROJECTOR: anatomy.projector, ENCODE: anatomy.encoders}[stage]

    def _intervals(self, stage: str, entry: Mark) -> list[Interval]:
        return [
            (self._clock.between_ms(entry, start), self._clock.between_ms(entry, end))
            for start, end in self._spans[stage].finished
        ]


def _generates_on_its_own(model: nn.Module) -> bool:
    definer = next((kind for kind in type(model).__mro__ if "generate" in vars(kind)), None)
    return definer is not GenerationMixin


def _is_image_tokenizer(module: nn.Module) -> bool:
    return isinstance(getattr(module, "quantize", None), nn.Module) and hasattr(module, "encode")


def _is_leaf_with_weights(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False))
