"""A TCP proxy in front of a broker that delays, stalls, cuts and half-closes what goes through it.

It has a thread of its own; the methods of `Proxy` are called from others.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 1 << 16
CHUNKS_ON_THE_WAY = 256
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: the end is a reset


class Direction:
    """One way through all connections: up to the broker or down to the client."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.open = asyncio.Event()
        self.open.set()


class Proxy:
    """Forwards connections made to `host` and `port` to a broker; a context manager."""

    def __init__(self, host: str, target: tuple[str, int]) -> None:
        self.host = host
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._up, self._down = Direction(), Direction()
        self._clients: set[asyncio.StreamWriter] = set()
        self._brokers: set[asyncio.StreamWriter] = set()
        self._refuses = False
        # Bound here: where a thread of a namespace makes a socket decides where it listens.
        self._socket = socket.create_server((host, 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = Thread(target=self._run, name=f"proxy {self.port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def delay(self, seconds: float) -> None:
        """Have what arrives from now on arrive so much later, each way."""

        def change() -> None:
            self._up.delay_s = self._down.delay_s = seconds

        self._do(change)

    def stall(self, *, up: bool, down: bool) -> None:
        """Let nothing through in these directions; connections stay, and what comes is kept."""

        def change() -> None:
            for direction, stalled in ((self._up, up), (self._down, down)):
                if stalled:
                    direction.open.clear()
                else:
                    direction.open.set()

        self._do(change)

    def cut(self) -> None:
        """Reset all connections and each new one, until `heal`."""

        def change() -> None:
            self._refuses = True
            for writer in self._clients | self._brokers:
                _reset(writer)

        self._do(change)

    def half_close(self) -> None:
        """Tell clients that the broker has hung up, and let the broker hear nothing of it."""

        def change() -> None:
            self._up.open.clear()
            for writer in self._clients:
                with suppress(OSError):
                    writer.get_extra_info("socket").shutdown(socket.SHUT_WR)

        self._do(change)

    def heal(self) -> None:
        """Forward again, without delay."""

        def change() -> None:
            self._refuses = False
            for direction in (self._up, self._down):
                direction.delay_s = 0.0
                direction.open.set()

        self._do(change)

    def _do(self, change: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(change)

    def _run(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(asyncio.start_server(self._serve, sock=self._socket))
        try:
            loop.run_forever()
        finally:
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            for writer in self._clients | self._brokers:
                writer.transport.abort()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._refuses:
            _reset(client)
            return
        try:
            answers, broker = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(client)
            return
        for writer in (client, broker):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients.add(client)
        self._brokers.add(broker)
        ways = (_forward(reader, broker, self._up), _forward(answers, client, self._down))
        try:
            # Cancelled when the proxy ends, which the server would tell as a failure.
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*ways)
        finally:
            self._clients.discard(client)
            self._brokers.discard(broker)
            for writer in (client, broker):
                writer.transport.abort()


async def _forward(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, direction: Direction
) -> None:
    """Forward until the source ends, then tell the target so."""
    loop = asyncio.get_running_loop()
    way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_ON_THE_WAY)

    async def take() -> None:
        content = b"-"
        while content:
            try:
                content = await source.read(CHUNK)
            except OSError:
                content = b""
            await way.put((loop.time() + direction.delay_s, content))

    taking = asyncio.create_task(take())
    try:
        while True:
            due, content = await way.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await direction.open.wait()
            if not content or target.transport.is_closing():
                break
            target.write(content)
            await target.drain()
        target.write_eof()
    except OSError:
        target.transport.abort()
    finally:
        taking.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
