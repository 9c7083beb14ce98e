"""Where a server listens, and who may ask."""

import socket

import pytest

from chronostat.errors import ConfigError
from chronostat.serving.server import bound, is_loopback


def test_what_is_accepted_sends_at_once():
    with (
        bound("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_port_that_is_taken_is_said_with_what_to_do():
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: .*--host and --port"):
            bound("127.0.0.1", port)


def test_only_this_machine_reaches_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.5")))
