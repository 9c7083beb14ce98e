"""Builds each model of the zoo once, and counts for the end of the run what was right and what was measured."""

from collections import Counter
from functools import cache
from typing import NamedTuple

import pytest
import torch

from zoo.build import ZooModel, build, expectations


class Warm(NamedTuple):
    """A model of the zoo after one plain call, in which the library installs hooks of its own."""

    zoo: ZooModel
    plain: torch.Tensor


@cache
def _warm(name: str) -> Warm:
    zoo = build(name)
    torch.manual_seed(0)
    output = zoo.model.generate(**zoo.batch, **zoo.options, max_new_tokens=4, do_sample=False)
    return Warm(zoo, getattr(output, "sequences", output))


@pytest.fixture(scope="session")
def warm():
    yield _warm
    _warm.cache_clear()


@pytest.fixture(scope="session")
def tally(request):
    """``tally["anatomy"][name] = True``, ``tally["source"][name] = "measured"``, ``tally["moe_topk"].add(name)``."""
    empty = {
        "anatomy": {},
        "source": {},
        "block_skip": set(),
        "equal": set(),
        "text": set(),
        "anew": set(),
        "moe_topk": set(),
        "image_keep": set(),
        "drop_after": set(),
    }
    return request.config.stash.setdefault(_TALLY, empty)


_TALLY = pytest.StashKey[dict]()


def pytest_terminal_summary(terminalreporter, config):
    tally = config.stash.get(_TALLY, None)
    if tally is None:
        return
    held_out = expectations().held_out
    right = {name for name, is_right in tally["anatomy"].items() if is_right}
    sources = Counter(tally["source"].values())
    terminalreporter.write_line(
        f"zoo: anatomy right {len(right)} of {len(tally['anatomy'])} "
        f"(held out {len(right & held_out)} of {len(held_out & set(tally['anatomy']))}); "
        + ", ".join(f"{kind} {sources[kind]}" for kind in ("measured", "total_only", "refused"))
        + f"; block_skip offered by {len(tally['block_skip'])}, equal to a model built without the block in "
        + f"{len(tally['equal'])}, on text alone in {len(tally['text'])} more, to skipping without a cache in "
        + f"{len(tally['anew'])} where no such model is one"
        + "".join(f"; {knob} offered by {len(tally[knob])}" for knob in ("moe_topk", "image_keep", "drop_after"))
    )
