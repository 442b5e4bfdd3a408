"""A broker in pure Python, where Mosquitto cannot be had: MQTT 3.1.1, loopback, no passwords.

It is a process of its own, as Mosquitto is: `python -m agent.adapters.amqtt_broker --port N`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal

from amqtt.broker import Broker


async def serve(port: int) -> None:
    """Serve on a loopback port until SIGTERM or SIGINT."""
    broker = Broker(
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
