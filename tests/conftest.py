"""Brokers for the tests: real ones, each on a loopback port of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import pytest

from agent.adapters.local_broker import LocalBroker, find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
USERS = {"pi-1": "agent", "pi-2": "standby", "coordinator": "coordinator", "alice": "client"}


@dataclass(frozen=True)
class SecureBroker:
    """A broker with TLS, passwords and the access list for `fleet`."""

    broker: LocalBroker
    folder: Path
    users: dict[str, str]
    fleet: str = "home"

    @property
    def ca_file(self) -> Path:
        """The certificate that clients trust."""
        return self.folder / "ca.crt"

    def password_file(self, user: str) -> Path:
        """Where the password of a user is."""
        return self.folder / "clients" / f"{user}.password"

    def password(self, user: str) -> str:
        """The password of a user."""
        return self.password_file(user).read_text(encoding="utf-8").strip()


class MakeCredentials(Protocol):
    """Runs broker_config/make_credentials.py as an operator does."""

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run it with these arguments."""


def need_mosquitto() -> None:
    """Fail with the reason where the real broker is missing."""
    if find_mosquitto() is None:
        pytest.fail("this test needs Mosquitto: apt-get install mosquitto mosquitto-clients")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A Mosquitto without passwords."""
    need_mosquitto()
    with LocalBroker.start(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="session")
def make_credentials() -> MakeCredentials:
    """The script that makes credentials."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        script = ROOT / "broker_config" / "make_credentials.py"
        command = [sys.executable, script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")  # what one module retains must not meet another
def secure_broker(
    tmp_path_factory: pytest.TempPathFactory, make_credentials: MakeCredentials
) -> Iterator[SecureBroker]:
    """A Mosquitto with mosquitto-tls.conf and credentials for USERS."""
    need_mosquitto()
    folder = tmp_path_factory.mktemp("secure")
    members = [part for user, role in USERS.items() for part in (f"--{role}", user)]
    made = make_credentials("--out", folder, "--fleet", "home", *members)
    assert made.returncode == 0, made.stderr
    config = folder / "mosquitto.conf"
    with LocalBroker.start(tmp_path_factory.mktemp("state"), config=config) as running:
        yield SecureBroker(running, folder, USERS)


@pytest.fixture
def fleet() -> str:
    """A fleet of this test's own, so that tests can share a broker."""
    return f"test-{uuid4().hex[:12]}"
