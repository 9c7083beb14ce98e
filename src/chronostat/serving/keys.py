"""Who may ask: the keys of a file, and what is said of requests without one of them."""

import hmac
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from chronostat.errors import ConfigError
from chronostat.wire.errors import Refused


class Keys:
    """Lets those in who bring a key; of others it keeps nothing but their number.

    Args:
        known: one of which a request has to bring; empty: none is needed.
        turned_away: told of each request without one, for metrics.
        told: told what a person should know: of the first, the tenth, the hundredth, so that nobody fills an output.
    """

    def __init__(
        self, known: Sequence[str], *, turned_away: Callable[[Refused], None], told: Callable[[str], None]
    ) -> None:
        self._known = [each.encode() for each in known]
        self._turned_away, self._told = turned_away, told
        self._count = 0

    def require(self, headers: Mapping[str, str]) -> None:
        """Let a request in by its ``Authorization``.

        Raises:
            Refused: it brings no key, or a wrong one.
        """
        if not self._known:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        right = [hmac.compare_digest(key.encode(), each) for each in self._known]
        if scheme.lower() == "bearer" and any(right):
            return
        refused = Refused(401, "no key, or a wrong one; send it as Authorization: Bearer KEY", code="invalid_api_key")
        self._turned_away(refused)
        self._count += 1
        if str(self._count).strip("0") == "1":
            self._told(f"requests without a right key so far: {self._count:,}; /metrics counts them")
        raise refused


def read_keys(file: Path) -> tuple[str, ...]:
    """The keys of a file, one a line.

    Raises:
        ConfigError: it cannot be read, holds none, or one that no header can bring.
    """
    try:
        keys = tuple(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--api-key-file {file}: cannot be read ({error}); name a text file, one key a line"
        ) from None
    if not keys:
        raise ConfigError(f"--api-key-file {file} holds no key; write one a line")
    for number, key in enumerate(keys, start=1):
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"--api-key-file {file}: key number {number} has characters other than printable ASCII, which clients "
                "cannot send; write letters, digits and signs alone"
            )
    return keys
