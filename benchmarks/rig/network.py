"""A network of emulated devices: one namespace each, on a bridge, behind links of a given rate.

The namespaces have no names: file descriptors of this process and the processes inside keep them
alive. When those have ended, however they ended, the kernel removes namespaces, links and shaping.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from agent.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

OWN_NAMESPACE = "/proc/thread-self/ns/net"
NEW_NETWORK = 0x40000000  # CLONE_NEWNET
SUBNET = "10.77.0"
LEAST_BURST = 1600  # one packet
# How long a link may send faster than its rate after a pause; a halo takes much longer.
BURST_S = 160e-6
QUEUE_BYTES = 4 << 20
PINGS = 50
TRANSFER_S = 0.3


@dataclass(frozen=True)
class LinkClass:
    """A kind of link: its rate in each direction, and the delay of a packet in each direction."""

    mbit: float
    delay_ms: float

    @property
    def bytes_per_s(self) -> float:
        """The rate in bytes a second."""
        return self.mbit * 125e3

    @property
    def burst(self) -> int:
        """How many bytes may pass at once."""
        return max(LEAST_BURST, round(self.bytes_per_s * BURST_S))


# Ethernet's own latency, and a bridge's, is what the machine takes anyway.
LINKS: Mapping[str, LinkClass] = MappingProxyType(
    {
        "1gbit": LinkClass(1000, 0.0),
        "100mbit": LinkClass(100, 0.0),
        "20mbit": LinkClass(20, 1.0),
        "5mbit": LinkClass(5, 2.5),
    }
)


@dataclass(frozen=True)
class LinkFigures:
    """What a link really does: `up` from the place to the bridge, `down` the other way."""

    up_mbit: float
    down_mbit: float
    round_trip_ms: float


class Namespace:
    """A network namespace of its own, until it is closed and no process is in it.

    Raises:
        FleetError: if this process may not make one.
    """

    def __init__(self) -> None:
        before = os.open(OWN_NAMESPACE, os.O_RDONLY)
        try:
            _system("unshare", NEW_NETWORK)
            self._file = os.open(OWN_NAMESPACE, os.O_RDONLY)
            _system("setns", before, NEW_NETWORK)
        finally:
            os.close(before)

    @property
    def path(self) -> str:
        """Where other processes find it: `nsenter --net=PATH`."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread, and what it starts, be in the namespace meanwhile."""
        before = os.open(OWN_NAMESPACE, os.O_RDONLY)
        try:
            _system("setns", self._file, NEW_NETWORK)
            yield
        finally:
            _system("setns", before, NEW_NETWORK)
            os.close(before)

    def close(self) -> None:
        """Give it up."""
        os.close(self._file)


class Network:
    """Places, each a namespace with its own link of one class to a common bridge.

    A context manager. `delayed` tells whether packets get the delay of their class, which takes a
    kernel with netem.

    Raises:
        FleetError: if this is not Linux, the user is not root, or iproute2 is missing.
    """

    def __init__(self, link: LinkClass, names: Sequence[str]) -> None:
        check_possible()
        self.link = link
        self.delayed = False
        self._cleanup = ExitStack()
        with ExitStack() as stack:
            self.places = {name: _made(stack) for name in names}
            self._bridge = _made(stack)
            with self._bridge.inside():
                _ip("link add name bridge type bridge")
                _ip("link set bridge up")
            for number, place in enumerate(self.places.values(), start=1):
                self._connect(number, place)
            self._cleanup = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def address(self, name: str) -> str:
        """Return the IPv4 address of a place."""
        return _address(list(self.places).index(name) + 1)

    def measure(self, one: str, other: str) -> LinkFigures:
        """Measure the way between two places, seen from `one`; takes about a second."""
        with ExitStack() as stack:
            with self.places[other].inside():
                server = stack.enter_context(socket.create_server((self.address(other), 0)))
            with self.places[one].inside():
                near = stack.enter_context(socket.create_connection(server.getsockname()))
            far = stack.enter_context(server.accept()[0])
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            round_trip = min(_ping(near, far) for _ in range(PINGS))
            total = int(self.link.bytes_per_s * TRANSFER_S)
            up, down = (_transfer(*ends, total) for ends in ((near, far), (far, near)))
        return LinkFigures(up, down, round_trip * 1e3)

    def _connect(self, number: int, place: Namespace) -> None:
        port = f"port{number}"
        with self._bridge.inside():
            _ip(f"link add name {port} type veth peer name eth0 netns {place.path}")
            _ip(f"link set {port} master bridge up")
            self._shape(port)
        with place.inside():
            _ip(f"address add {_address(number)}/24 dev eth0")
            _ip("link set lo up")
            _ip("link set eth0 up")
            self._shape("eth0")

    def _shape(self, device: str) -> None:
        link = self.link
        # Larger packets of the kernel's own would have to be taken apart to fit into a burst.
        whole = link.burst * 3 // 4
        _ip(f"link set {device} gso_max_size {whole} gso_max_segs {max(1, whole // 1448)}")
        rate = f"rate {link.bytes_per_s * 8:.0f}bit burst {link.burst} limit {QUEUE_BYTES}"
        _tc(f"qdisc add dev {device} root handle 1: tbf {rate}")
        if link.delay_ms:
            delay = f"parent 1:1 handle 2: netem delay {link.delay_ms}ms limit 20000"
            self.delayed = _try(["tc", *f"qdisc add dev {device} {delay}".split()]) is None


def check_possible() -> None:
    """Check that a network can be made here.

    Raises:
        FleetError: with what is missing.
    """
    if not sys.platform.startswith("linux"):
        raise FleetError("the rig needs Linux: it is made of network namespaces")
    if os.geteuid() != 0:
        raise FleetError("the rig needs root, for network namespaces: sudo make rig")
    if shutil.which("ip") is None or shutil.which("tc") is None:
        raise FleetError("the rig needs ip and tc: apt-get install iproute2")


def _made(stack: ExitStack) -> Namespace:
    namespace = Namespace()
    stack.callback(namespace.close)
    return namespace


def _address(number: int) -> str:
    return f"{SUBNET}.{number}"


def _ping(near: socket.socket, far: socket.socket) -> float:
    started = time.perf_counter()
    near.sendall(b"x")
    far.sendall(far.recv(1))
    near.recv(1)
    return time.perf_counter() - started


def _transfer(source: socket.socket, target: socket.socket, total: int) -> float:
    """Return the rate, in Mbit/s, at which TCP's content arrives."""
    unsent, received = memoryview(bytes(total)), 0
    source.setblocking(False)
    started = time.perf_counter()
    while received < total:
        writers = [source] if unsent else []
        readable, writable, _ = select.select([target], writers, [])
        if writable:
            unsent = unsent[source.send(unsent) :]
        if readable:
            received += len(target.recv(1 << 18))
    source.setblocking(True)
    return total * 8e-6 / (time.perf_counter() - started)


def _ip(arguments: str) -> None:
    _run(["ip", *arguments.split()])


def _tc(arguments: str) -> None:
    _run(["tc", *arguments.split()])


def _run(command: list[str]) -> None:
    reason = _try(command)
    if reason is not None:
        raise FleetError(f"the rig's network cannot be made: {' '.join(command)}: {reason}")


def _try(command: list[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip()


def _system(call: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise FleetError(
            f"no network namespace can be made here: {reason}; containers need --privileged"
        )
