"""How tests look at a model from outside: injected time, counted calls, and everything that must be as it was."""

import functools
from collections import Counter
from collections.abc import Collection
from contextlib import contextmanager

import torch
from torch import nn

from chronostat.measure.clock import FakeClock


def delay(monkeypatch, clock: FakeClock, owner, ms: float, *, method="forward", calls: Collection[int] | None = None):
    """Let ``ms`` pass on the clock inside ``owner.method``, at the calls named by number (all if absent)."""
    original = getattr(owner, method)
    seen = Counter()

    @functools.wraps(original)
    def slow(*args, **kwargs):
        if calls is None or seen["calls"] in calls:
            clock.advance_ms(ms)
        seen["calls"] += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, slow)


@contextmanager
def counted_calls(modules: dict[str, nn.Module]):
    """How often each module was called, by name."""
    counts: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: counts.update([name])) for name, module in modules.items()
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def hook_counts(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in model.named_modules()}


class Snapshot:
    """State-dict values, attributes, submodules and hook counts of a model; equal snapshots are bit-equal models."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = {name: value.clone() for name, value in model.state_dict().items()}
        self._attributes = {
            name: {key: value for key, value in vars(module).items() if not isinstance(value, dict)}
            for name, module in model.named_modules()
        }
        self._modules = {name: id(module) for name, module in model.named_modules()}
        self._hooks = hook_counts(model)

    def assert_equals(self, model: nn.Module) -> None:
        now = Snapshot(model)
        assert list(now._weights) == list(self._weights)
        assert all(torch.equal(now._weights[name], value) for name, value in self._weights.items())
        assert now._modules == self._modules
        assert now._attributes == self._attributes
        assert now._hooks == self._hooks
