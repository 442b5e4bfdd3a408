"""Logs on stderr (journald adds the time there): one line an event, fields at its end.

Of lines that are alike some are told and the others counted (`agent.adapters.throttle`).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import Any

from agent.adapters.throttle import Throttle

LOGGER = logging.getLogger("halomq")
_THROTTLE = Throttle()
_LOCK = threading.Lock()
FIELDS = ("device", "model", "request", "epoch")


class LineFormatter(logging.Formatter):
    """`time level text device=... request=... epoch=...`, on exactly one line."""

    def __init__(self, device: str, *, timed: bool) -> None:
        super().__init__("%(asctime)s %(message)s" if timed else "%(message)s")
        self._device = device

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        fields = {"device": self._device} | {
            name: value
            for name in FIELDS
            if (value := getattr(record, f"halomq_{name}", None)) is not None
        }
        line = super().format(record).replace("\n", " ")
        told = " ".join(f"{name}={value}" for name, value in fields.items())
        return f"{record.levelname.lower()}: {line} {told}"


def start_logging(level: str, device: str) -> None:
    """Send the process's log lines to stderr, from `level` (a name of `logging`) up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(device, timed="JOURNAL_STREAM" not in os.environ))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False


def log(level: str, text: str, **fields: Any) -> None:
    """Log one line; `fields` may be `device`, `model`, `request` and `epoch`."""
    settle()
    with _LOCK:
        admitted = _THROTTLE.admits(level, text, time.monotonic())
    if admitted:
        _write(level, text, fields)


def settle() -> None:
    """Tell how many lines were left out, where their time is over; call it about once a second."""
    with _LOCK:
        lines = _THROTTLE.settle(time.monotonic())
    for level, text in lines:
        _write(level, text, {})


def _write(level: str, text: str, fields: dict[str, Any]) -> None:
    extra = {f"halomq_{name}": value for name, value in fields.items()}
    LOGGER.log(logging.getLevelName(level.upper()), text, extra=extra)
