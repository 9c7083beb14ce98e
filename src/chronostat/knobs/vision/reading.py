"""What a processor says about itself: attributes and defaults, wherever the library keeps them."""

from collections.abc import Mapping
from typing import Any, cast

from transformers import ProcessorMixin


class Reader:
    """A processor and its image processor, read live: nothing is copied."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor: Any = processor
        self.image_processor: Any = getattr(processor, "image_processor", None)

    @property
    def owner(self) -> str:
        """The image processor's class, for people."""
        return type(self.image_processor).__name__

    def default(self, name: str) -> Any:  # noqa: ANN401 - attributes hold anything
        """What the image processor is called with by itself: the processor's word counts before its own.

        The processor keeps it in ``images_kwargs``, before transformers 5.2x in ``_defaults`` of the type of its
        arguments.
        """
        for kept in (getattr(self.processor, "images_kwargs", None), self._typed_defaults().get("images_kwargs")):
            if isinstance(kept, Mapping) and name in kept:
                return cast("Mapping[str, Any]", kept)[name]
        return getattr(self.image_processor, name, None)

    def option(self, name: str) -> Any:  # noqa: ANN401 - attributes hold anything
        """An option of the processor itself."""
        found = getattr(self.processor, name, None)
        if found is not None:
            return found
        return next((kept[name] for kept in self._typed_defaults().values() if name in kept), None)

    def count(self, name: str) -> int | None:
        """A default that is a positive integer."""
        value = self.default(name)
        return value if type(value) is int and value > 0 else None

    def takes(self, *names: str) -> bool:
        """Whether the image processor has all these arguments or attributes."""
        known = getattr(getattr(self.image_processor, "valid_kwargs", None), "__annotations__", {})
        return all(name in known or hasattr(self.image_processor, name) for name in names)

    def edge(self, name: str, of: str = "size") -> int | None:
        """One number of a size: ``height``, ``shortest_edge`` and so on."""
        size = self.default(of)
        value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
        return value if type(value) is int and value > 0 else None

    def _typed_defaults(self) -> Mapping[str, Mapping[str, Any]]:
        typed: object = getattr(self.processor, "valid_processor_kwargs", None)
        return getattr(typed, "_defaults", None) or {}
