"""Who may ask, and what is said of those who may not."""

import pytest

from chronostat.errors import ConfigError
from chronostat.serving.keys import Keys, read_keys
from chronostat.wire.errors import Refused


def test_a_flood_of_wrong_keys_is_counted_and_seldom_told():
    counted, told = [], []
    keys = Keys(("secret",), turned_away=counted.append, told=told.append)
    for number in range(120):
        with pytest.raises(Refused, match="no key, or a wrong one"):
            keys.require({"authorization": f"Bearer secret{number}"})
    keys.require({"authorization": "Bearer secret"})
    assert len(counted) == 120
    assert told == [f"requests without a right key so far: {n}; /metrics counts them" for n in (1, 10, 100)]


def test_keys_are_the_lines_of_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one\n\n  two \n")
    assert read_keys(file) == ("one", "two")
    for bad in ("k\u00e9y", "\ufeffkey", "k\ty"):
        file.write_text(f"one\n\n{bad}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="key number 2 has characters other than printable ASCII") as caught:
            read_keys(file)
        assert bad not in str(caught.value)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(file)
