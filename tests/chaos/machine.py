"""What this machine lets us break: cables, disks and memory, all of our own making.

`alone` puts this program into network and mount namespaces of its own, where it may; the kernel
removes those, and all links and mounts in them, when the program ends, however it ends. Memory
groups are removed by `MemoryGroup`.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from benchmarks.rig.network import Namespace

if TYPE_CHECKING:
    from collections.abc import Sequence

ALONE = "--alone"
UNSHARE = ["unshare", "--net", "--mount"]
SUBNET = "10.78"
DISK_BYTES = 48 << 20
BLOCK = bytes(1 << 16)
ROOM_BYTES = 4 << 20
# In a group, what a process has already does not count: this is what it may take beyond that.
GROUP_BYTES = 256 << 10
# Version 1 of the kernel's control groups, and version 2: root, limit, count of kills.
GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.oom_control"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.events"),
)
LEFT_S = 2.0
POLL_S = 0.05


def why_not_alone() -> str | None:
    """Return why there can be no namespaces, None if there can."""
    if os.geteuid() != 0:
        return "it needs root"
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "it needs ip and unshare: apt-get install iproute2 util-linux"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def alone(arguments: Sequence[str]) -> None:
    """Become the same program, with namespaces of its own; return only if it has them."""
    if ALONE in arguments:
        _ip("link set lo up")
        return
    command = [sys.executable, "-m", "tests.chaos", ALONE, *arguments]
    os.execvp(UNSHARE[0], [*UNSHARE, *command])  # noqa: S606 - no shell is what is wanted


class Cable:
    """A network namespace for device `number`, and a link from here to it that can be pulled.

    `address` is this end's.
    """

    def __init__(self, number: int) -> None:
        self.place = Namespace()
        self._near = f"cable{number}"
        self.address = f"{SUBNET}.{number}.1"
        _ip(f"link add name {self._near} type veth peer name eth0 netns {self.place.path}")
        _ip(f"address add {self.address}/24 dev {self._near}")
        _ip(f"link set {self._near} up")
        with self.place.inside():
            _ip("link set lo up")
            _ip(f"address add {SUBNET}.{number}.2/24 dev eth0")
            _ip("link set eth0 up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.place.close()

    def pull(self) -> None:
        """Take the link down: connections stay, and nothing gets through."""
        _ip(f"link set {self._near} down")

    def plug(self) -> None:
        """Take the link up again."""
        _ip(f"link set {self._near} up")


class Disk:
    """A small file system at `folder`, which can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={DISK_BYTES},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "halomq", folder], check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self._folder], check=True)

    def fill(self) -> None:
        """Take all space that is left."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while file.write(BLOCK):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def empty(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)


class MemoryGroup:
    """A control group in which a process may take `GROUP_BYTES` beyond what it has."""

    @staticmethod
    def why_not() -> str | None:
        """Return why there can be no such group, None if there can."""
        if os.geteuid() != 0:
            return "it needs root"
        try:
            MemoryGroup("probe").remove()
        except OSError as error:
            return f"no memory control groups here: {error}"
        return None

    def __init__(self, title: str) -> None:
        for base, limit, events in GROUPS:
            folder = base / f"halomq-chaos-{os.getpid()}-{title}"
            with suppress(OSError):
                folder.mkdir()
                if (folder / limit).exists():
                    self._base, self._folder, self._events = base, folder, folder / events
                    (folder / limit).write_text(str(GROUP_BYTES))
                    return
                folder.rmdir()
        raise OSError(errno.ENOENT, "neither version of the kernel's can be used")

    @property
    def killed(self) -> bool:
        """Whether the kernel has killed a process for its memory."""
        lines = self._events.read_text().splitlines()
        return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in lines)

    def take(self, pid: int) -> None:
        """Have a process in the group."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Let go of processes that are in it, and remove it."""
        for pid in (self._folder / "cgroup.procs").read_text().split():
            with suppress(OSError):  # it has just ended
                (self._base / "cgroup.procs").write_text(pid)
        end = time.monotonic() + LEFT_S
        while self._folder.exists() and time.monotonic() < end:
            try:
                self._folder.rmdir()
            except OSError:  # a killed process is not quite gone
                time.sleep(POLL_S)


def refuse_memory(pid: int) -> None:
    """Let a process allocate `ROOM_BYTES` more and then no more, until `grant_memory`."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    limit = psutil.Process(pid).memory_info().vms + ROOM_BYTES
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, hard))


def grant_memory(pid: int) -> None:
    """Undo `refuse_memory`."""
    with suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)
