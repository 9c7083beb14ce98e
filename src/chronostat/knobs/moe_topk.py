"""``moe_topk``: how many experts each token is routed to."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol, Self, cast

from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import KnobError
from chronostat.knobs.base import Knob
from chronostat.models.anatomy import anatomy_of
from chronostat.records import KnobValue


class Router(Protocol):
    """Chooses the experts of each token."""

    top_k: int


class MoeTopk(Knob):
    """Experts per token in all decoder blocks, through the routers' ``top_k``.

    The routers read it at every call, whereas changing the config after loading does nothing.
    """

    name = "moe_topk"

    def __init__(self, trained_topk: int) -> None:
        halves = [trained_topk]
        while halves[-1] > 1:
            halves.append(halves[-1] // 2)
        self.levels = tuple(halves)

    @classmethod
    def find(cls, model: PreTrainedModel, processor: ProcessorMixin | None) -> Self:
        """Read the trained number of experts from the routers."""
        trained = {router.top_k for router in _routers(model)}
        if not trained:
            raise KnobError(
                f"moe_topk: {type(model).__name__} has no router with an integer top_k, it is a dense model"
            )
        if len(trained) > 1:
            raise KnobError(f"moe_topk: the routers of {type(model).__name__} differ in top_k ({sorted(trained)})")
        return cls(trained.pop())

    def check(self, value: KnobValue) -> None:
        """Any number from 1 to the trained one."""
        most = self.levels[0]
        assert isinstance(most, int)
        if type(value) is not int or not 1 <= value <= most:
            raise self.refuse(value, f"1 to {most} experts per token")

    @contextmanager
    def applied(self, model: PreTrainedModel, value: KnobValue) -> Generator[None]:
        """Set ``top_k`` of every router in the decoder blocks."""
        assert isinstance(value, int)
        routers = _routers(model)
        trained = [router.top_k for router in routers]
        try:
            for router in routers:
                router.top_k = value
            yield
        finally:
            for router, topk in zip(routers, trained, strict=True):
                router.top_k = topk


def _routers(model: nn.Module) -> list[Router]:
    """Those of the blocks that run: a block that ``block_skip`` has taken out routes nothing."""
    running = dict(model.named_modules())
    return [cast("Router", running[path]) for path in anatomy_of(model).routers if path in running]
