"""The proxy does to connections what its faults say, and forwards again when it is healed."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
PATIENCE_S = 20.0
SHORT_S = 0.3


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy in front of a server that echoes."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server((HOST, 0)))
        Thread(target=echo_all, args=(server,), daemon=True).start()
        yield stack.enter_context(Proxy(HOST, server.getsockname()))
        server.shutdown(socket.SHUT_RDWR)


def echo_all(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        Thread(target=echo, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    # A cut resets this end, too.
    with connection, suppress(ConnectionResetError):
        while content := connection.recv(1 << 16):
            connection.sendall(content)


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), PATIENCE_S)


def check_echoes(connection: socket.socket, content: bytes = b"content") -> None:
    connection.sendall(content)
    check_hears(connection, content)


def check_hears(connection: socket.socket, content: bytes) -> None:
    heard = b""
    while len(heard) < len(content):
        heard += connection.recv(1 << 16)
    assert heard == content


def test_it_forwards_what_is_large_and_that_an_end_hung_up(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        check_echoes(connection, bytes(range(256)) * 4096)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_what_is_delayed_comes_complete_and_in_order(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        check_echoes(connection)
        proxy.delay(0.05)
        check_echoes(connection, bytes(range(256)) * 256)


@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True), (True, True)])
def test_what_is_stalled_comes_once_it_is_healed(proxy: Proxy, up: bool, down: bool) -> None:  # noqa: FBT001
    with connect(proxy) as connection:
        check_echoes(connection)
        proxy.stall(up=up, down=down)
        connection.sendall(b"late")
        connection.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(PATIENCE_S)
        proxy.heal()
        check_hears(connection, b"late")


def test_a_cut_resets_connections_and_new_ones_until_it_is_healed(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        check_echoes(connection)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with pytest.raises(ConnectionResetError), connect(proxy) as refused:
            refused.recv(1)
        proxy.heal()
        with connect(proxy) as healed:
            check_echoes(healed)


def test_of_a_half_closed_connection_only_the_client_knows(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        check_echoes(connection)
        proxy.half_close()
        assert connection.recv(1) == b""
        # It may still write, and nobody hears it.
        connection.sendall(b"anybody?")
