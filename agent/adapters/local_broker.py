"""A broker of this process's own on a free port: for the demo, benchmarks and tests."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Self

import psutil

from agent.errors import BrokerError

if TYPE_CHECKING:
    from pathlib import Path

HOST = "127.0.0.1"
ATTEMPTS = 5
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.02
# What broker_config/mosquitto.conf says; an installed wheel has no such file.
SETTINGS = """\
set_tcp_nodelay true
max_packet_size 8454144
max_inflight_messages 64
max_inflight_bytes 33554432
max_queued_messages 4096
max_queued_bytes 134217728
persistence true
autosave_interval 600
persistent_client_expiration 1d
"""
# Lines of a configuration that a local broker decides itself.
OWN = ("listener", "log_dest", "persistence_location", "pid_file", "user")

Kind = Literal["mosquitto", "amqtt"]


def find_mosquitto() -> str | None:
    """Return the path of Mosquitto, which Debian keeps off an ordinary user's PATH."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class LocalBroker:
    """A running broker; a context manager. Get one with `start`.

    It ends with `stop`, at this process's exit, and (where util-linux's setpriv is there) when
    this process is killed.
    """

    def __init__(
        self, kind: Kind, host: str, port: int, log: Path, process: subprocess.Popen[bytes]
    ) -> None:
        self.kind: Kind = kind
        self.host = host
        self.port = port
        self.log = log
        self._process = process
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """The broker's process."""
        return self._process.pid

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        allow_embedded: bool = True,
        config: Path | None = None,
        host: str = HOST,
    ) -> LocalBroker:
        """Start Mosquitto, or amqtt where there is none, and wait until it accepts connections.

        `folder` keeps its configuration, state and log. `config` is a Mosquitto configuration to
        use in place of the built-in one, with its (only) listener moved to the free port. `host` is
        the address of this machine to listen at; others than loopback take Mosquitto.
        """
        folder.mkdir(parents=True, exist_ok=True)
        mosquitto = find_mosquitto()
        if mosquitto is None and (not allow_embedded or config is not None):
            raise BrokerError("Mosquitto is not installed: apt-get install mosquitto")
        if mosquitto is None and importlib.util.find_spec("amqtt") is None:
            raise BrokerError(
                "there is neither Mosquitto nor amqtt: apt-get install mosquitto, "
                "or pip install 'halomq[demo]'"
            )
        kind: Kind = "mosquitto" if mosquitto else "amqtt"
        log = folder / f"{kind}.log"
        for _ in range(ATTEMPTS):
            port = _free_port(host)
            if mosquitto:
                text = SETTINGS if config is None else config.read_text(encoding="utf-8")
                file = folder / "mosquitto.conf"
                file.write_text(_settings(text, folder, host, port), encoding="utf-8")
                command = [mosquitto, "-c", str(file)]
            else:
                command = [sys.executable, "-m", "agent.adapters.amqtt_broker", "--port", str(port)]
            with log.open("wb") as output:
                # A group of its own: Ctrl-C is for the program, which stops its broker last.
                process = subprocess.Popen(
                    [*tied_to_this_process(), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
            broker = cls(kind, host, port, log, process)
            if broker._accepts():
                return broker
            broker.stop()
            text = log.read_text(encoding="utf-8", errors="replace")
            # Somebody else took the port between our look and the broker's bind.
            if "in use" not in text:
                break
        last = text.strip().splitlines()[-3:]
        raise BrokerError(f"{kind} did not start: {' / '.join(last) or 'no output'}; see {log}")

    def __enter__(self) -> Self:
        """Return the running broker."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the broker."""
        self.stop()

    def stop(self) -> None:
        """End the broker; doing so twice does no harm."""
        atexit.unregister(self.stop)
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _accepts(self) -> bool:
        """Wait until the broker's own process, and no other, listens on the port."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            # A process that ends while it is looked at is for poll() to tell.
            with suppress(psutil.Error):
                if any(
                    found.pid == self.pid
                    and found.status == psutil.CONN_LISTEN
                    and tuple(found.laddr) == (self.host, self.port)
                    for found in psutil.net_connections("tcp4")
                ):
                    return True
            time.sleep(POLL_S)
        return False


def _settings(text: str, folder: Path, host: str, port: int) -> str:
    """Return Mosquitto's configuration `text` for one listener, with its state in `folder`."""
    here = [f"persistence_location {folder}/", "log_dest stderr"]
    if os.geteuid() == 0:
        # Root's broker would become the user `mosquitto`, who may not read this folder.
        here.append("user root")
    kept, listens = [], False
    for line in text.splitlines():
        word = line.partition(" ")[0]
        if word == "listener" and not listens:
            # In its place: TLS settings that follow belong to this listener.
            listens = True
            kept.append(f"listener {port} {host}")
        elif word not in OWN:
            kept.append(line)
    if not listens:
        kept += [f"listener {port} {host}", "allow_anonymous true"]
    return "\n".join([*here, *kept, ""])


def tied_to_this_process() -> list[str]:
    """Return the prefix of a command that is to end when this process is killed."""
    # The kernel sends the signal when the starting *thread* ends, so only the main one may ask.
    if threading.current_thread() is not threading.main_thread():
        return []
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _free_port(host: str) -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
