"""Knobs that do not keep their promises, each in one way."""

from contextlib import contextmanager

import torch

from chronostat.knobs.base import Knob


class AttributeOnly(Knob):
    """Sets an attribute that nobody reads"""

    name = "lazy"
    levels = (2, 1)

    @classmethod
    def find(cls, model, processor):
        return cls()

    def check(self, value):
        if value not in self.levels:
            raise self.refuse(value, "1 or 2")

    @contextmanager
    def applied(self, model, value):
        model.lazy_level = value
        try:
            yield
        finally:
            del model.lazy_level


class FewerExperts(AttributeOnly):
    """Really acts: all routers, one expert."""

    work = ("experts_per_token",)

    @contextmanager
    def applied(self, model, value):
        routers = [block.mlp for block in model.model.transformer["blocks"] if hasattr(block, "mlp")]
        trained = [router.top_k for router in routers]
        for router in routers:
            router.top_k = min(value, router.top_k)
        try:
            yield
        finally:
            for router, top_k in zip(routers, trained, strict=True):
                router.top_k = top_k


class LeavesAttribute(FewerExperts):
    """Acts, and forgets an attribute."""

    @contextmanager
    def applied(self, model, value):
        with super().applied(model, value):
            yield
        model.model.left_by_knob = value


class LeavesHook(FewerExperts):
    """Acts, and forgets a hook."""

    @contextmanager
    def applied(self, model, value):
        with super().applied(model, value):
            model.lm_head.register_forward_hook(lambda *_: None)
            yield


class LeavesConfig(FewerExperts):
    """Acts, and changes a configuration in place for good."""

    @contextmanager
    def applied(self, model, value):
        with super().applied(model, value):
            model.config.moe_top_k = value
            yield


class RoundsWeights(FewerExperts):
    """Acts, and rounds one weight on the way."""

    @contextmanager
    def applied(self, model, value):
        with super().applied(model, value):
            yield
            with torch.no_grad():
                weight = model.lm_head.weight
                weight.copy_(weight.bfloat16())


class ForgetsInTheForward(FewerExperts):
    """Acts by a hook, which leaves something at the first forward only."""

    @contextmanager
    def applied(self, model, value):
        def hook(*_):
            if value < self.full:
                model.config.seen = True

        handle = model.lm_head.register_forward_hook(hook)
        with super().applied(model, value):
            yield
        handle.remove()
