"""Tell systemd how the service does (sd_notify), where systemd asks for it."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)
MICROSECONDS = 1_000_000


class Notifier:
    """Sends datagrams to $NOTIFY_SOCKET; without one, does nothing.

    A service must not fail because its supervisor cannot be told: errors are logged once.
    `interval_s` is how often `watchdog` wants to be called, or None where nobody watches.
    """

    def __init__(self, address: str | None, interval_s: float | None = None) -> None:
        # systemd writes an abstract socket's leading zero byte as "@".
        self._address = f"\0{address[1:]}" if address and address[0] == "@" else address or None
        self._complained = False
        self.interval_s = interval_s if self._address else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Notifier:
        """Return what the variables that systemd sets ask for."""
        # The watchdog may be meant for another process of the same unit.
        mine = environment.get("WATCHDOG_PID") in {None, str(os.getpid())}
        usec = environment.get("WATCHDOG_USEC", "")
        interval = int(usec) / MICROSECONDS / 2 if mine and usec.isdecimal() else 0.0
        return cls(environment.get("NOTIFY_SOCKET"), interval or None)

    @property
    def supervised(self) -> bool:
        """Whether systemd runs this process, and so may start it again."""
        return self._address is not None

    def ready(self) -> None:
        """Tell that the service serves."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Tell that the service is on its way out."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Tell that the service makes progress; when this stays away, systemd restarts it."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show `text` in `systemctl status`."""
        self._send(f"STATUS={' '.join(text.splitlines())}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
            with socket.socket(socket.AF_UNIX, kind) as sender:
                # A full queue must not block the loop that the watchdog watches.
                sender.setblocking(False)
                sender.sendto(message.encode(errors="replace"), self._address)
        except (OSError, ValueError) as error:
            if not self._complained:
                self._complained = True
                log.warning("cannot notify systemd at %r: %s", self._address, error)
