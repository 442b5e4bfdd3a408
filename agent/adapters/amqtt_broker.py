"""A broker in pure Python, where Mosquitto cannot be had: MQTT 3.1.1, loopback, no passwords.

It is a process of its own, as Mosquitto is: `python -m agent.adapters.amqtt_broker --port N`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker

MORE = 0x80  # in a byte of a packet's length: another one follows
MQTT_5 = b"\0\4MQTT\5"
REFUSED = b"\x20\2\0\1"  # CONNACK, "unacceptable protocol version"


class _Replayed(StreamReaderAdapter):  # type: ignore[misc]
    """A connection whose first bytes have been looked at."""

    def __init__(self, first: bytes, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self._first = first

    async def read(self, n: int = -1) -> bytes:
        """Return `n` bytes, those that were looked at first."""
        if not self._first:
            return bytes(await super().read(n))
        part, self._first = self._first[:n], self._first[n:]
        return part if len(part) == n else part + bytes(await super().read(n - len(part)))


class _Broker(Broker):  # type: ignore[misc]
    """Refuses MQTT 5 in words: amqtt takes its properties for a client id, and waits for more."""

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Take a new connection."""
        try:
            first = await reader.readexactly(2)
            while first[-1] & MORE:
                first += await reader.readexactly(1)
            first += await reader.readexactly(len(MQTT_5))
        except (asyncio.IncompleteReadError, OSError):
            writer.close()
            return
        if first.endswith(MQTT_5):
            writer.write(REFUSED)
            writer.close()
            return
        await self.external_connected(
            _Replayed(first, reader), StreamWriterAdapter(writer), listener_name
        )


async def serve(port: int) -> None:
    """Serve on a loopback port until SIGTERM or SIGINT."""
    broker = _Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            # Without the loggers, which format every packet.
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await broker.start()
    await ended.wait()
    await broker.shutdown()


def main(arguments: list[str] | None = None) -> None:
    """Run the broker."""
    parser = argparse.ArgumentParser(description="HaloMQ's embedded MQTT 3.1.1 broker (amqtt).")
    parser.add_argument("--port", type=int, required=True)
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve(parser.parse_args(arguments).port))


if __name__ == "__main__":
    main()
