"""Compiled modules: hooks on or inside them are skipped, or break their graph, so none may be there."""

import sys
from collections.abc import Iterable, Iterator

from torch import nn

from chronostat.errors import ModelError


def is_compiled(module: nn.Module) -> bool:
    """Whether calls run a graph: ``torch.compile`` of the module or of its forward, or ``module.compile()``."""
    # the first two forms leave a forward that names its original, the last a second call
    return (
        hasattr(module.forward, "_torchdynamo_orig_callable")
        or getattr(module, "_compiled_call_impl", None) is not None
    )


def require_hooks_fire(model: nn.Module, paths: Iterable[str]) -> None:
    """Accept a model whose parts at ``paths`` lie in no compiled module; others may be compiled.

    Raises:
        ModelError: a part is compiled, or lies inside a compiled one.
    """
    around = {"", *(ancestor for path in paths for ancestor in _with_ancestors(path))}
    compiled = next((path for path in sorted(around) if is_compiled(model.get_submodule(path))), None)
    if compiled is not None:
        what = compiled or type(model).__name__
        raise ModelError(
            f"{what} was compiled before (torch.compile): hooks inside a compiled module are skipped or break its "
            "graph, so its stages cannot be measured; pass the model as it was before, and let generate() compile the "
            "decode steps itself (cache_implementation='static'), which is measured"
        )


def leaves_outside_graphs(module: nn.Module) -> Iterator[nn.Module]:
    """Modules inside ``module`` that hold weights and no other module, and where hooks fire."""
    for child in module.children():
        if is_compiled(child):
            continue
        if any(True for _ in child.children()):
            yield from leaves_outside_graphs(child)
        elif any(True for _ in child.parameters(recurse=False)):
            yield child


def _with_ancestors(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[: end + 1]) for end in range(len(parts)))


def graphs_compiled() -> int:
    """How many graphs this process has compiled so far; 0 before anything asked torch to compile."""
    utils = sys.modules.get("torch._dynamo.utils")  # importing it takes seconds
    return int(utils.counters["stats"]["unique_graphs"]) if utils is not None else 0
