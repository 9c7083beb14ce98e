"""What can be asked of a request: a value for each knob."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from chronostat.errors import KnobError

KnobValue = int | float | str | tuple[int, ...]


@dataclass(frozen=True, init=False)
class Setting(Mapping[str, KnobValue]):
    """One value for each knob, by name; hashable. A knob that is not named stays as the model was built.

    ``str(setting)`` and ``Setting.parse`` are inverse: ``"vision_tokens=80 moe_topk=1 block_skip=2,3"``, with
    ``vision_tokens=0.25`` for a share, ``image_keep=pool:64`` for a method with its number, ``block_skip=-`` for the
    empty tuple and ``"full"`` for the setting without knobs.
    """

    pairs: tuple[tuple[str, KnobValue], ...]

    def __init__(self, values: Mapping[str, KnobValue] | None = None, /, **knobs: KnobValue) -> None:
        merged = {**(values or {}), **knobs}
        object.__setattr__(self, "pairs", tuple(merged.items()))

    def __getitem__(self, knob: str) -> KnobValue:
        for name, value in self.pairs:
            if name == knob:
                return value
        raise KeyError(knob)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Setting) and dict(self.pairs) == dict(other.pairs)

    def __hash__(self) -> int:
        return hash(frozenset(self.pairs))

    def __str__(self) -> str:
        return " ".join(f"{name}={value_text(value)}" for name, value in self.pairs) or "full"

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """Read what ``str`` wrote.

        Raises:
            KnobError: a word is not of the form ``knob=value``, or a knob is named twice.
        """
        if text.strip() in {"", "full"}:
            return cls()
        pairs = [_parse_pair(word) for word in text.split()]
        for name, count in Counter(name for name, _ in pairs).items():
            if count > 1:
                raise KnobError(f"{text!r} names {name} {count} times; name each knob once")
        return cls(dict(pairs))


def knob_value(plain: float | str | list[int]) -> KnobValue:
    """The value that JSON has made a list of, where it is a tuple."""
    return tuple(plain) if isinstance(plain, list) else plain


def value_text(value: KnobValue) -> str:
    """A value as ``str`` of a setting writes it, such as ``0.25``, ``2,3`` or ``-``."""
    if not isinstance(value, tuple):
        return str(value)
    if not value:
        return "-"
    return ",".join(map(str, value)) + ("," if len(value) == 1 else "")


def _parse_pair(word: str) -> tuple[str, KnobValue]:
    name, equals, text = word.partition("=")
    try:
        if text == "-":
            return name, ()
        if "," in text:
            return name, tuple(int(part) for part in text.rstrip(",").split(","))
        before, colon, after = text.partition(":")
        if equals and name and colon and before and after:
            return name, text
        number = text if equals and name else ""
        return name, float(number) if set(".e") & set(number) else int(number)
    except ValueError:
        raise KnobError(
            f"cannot read {word!r} as a knob setting; write knob=value, for example vision_tokens=80, moe_topk=1 "
            "or block_skip=2,3"
        ) from None
