"""The topics of a fleet: how they are spelt, and what a received one addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from agent.errors import WireError

PREFIX = "halomq/1"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Kind(Enum):
    """What a message on a topic is."""

    STATUS = "status"
    INBOX = "inbox"
    HALO = "halo"
    ECHO = "echo"
    DRILL = "drill"
    BEAT = "beat"
    PLAN = "plan"
    DEPLOYMENT = "deployment"
    INFER = "infer"
    RESULT = "result"
    TRACE = "trace"
    BLOB = "blob"


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed topic.

    `subject` is the device, the model or the blob's digest; `request` the request's id where the
    topic has one; `tensors` tells that a request wants msgpack tensors as its answer.
    """

    kind: Kind
    subject: str
    request: str | None = None
    tensors: bool = False


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of `fleet`, the agents that share one topic namespace on one broker."""

    fleet: str

    @property
    def root(self) -> str:
        """The prefix of every topic of the fleet, without a trailing slash."""
        return f"{PREFIX}/{self.fleet}"

    def status(self, device: str) -> str:
        """Retained JSON: birth, capacity and health of a device; its last will."""
        return f"{self.root}/device/{device}/status"

    def inbox(self, device: str) -> str:
        """JSON control messages for one device."""
        return f"{self.root}/device/{device}/inbox"

    def halo(self, device: str) -> str:
        """Pieces of tensors (msgpack) for one device."""
        return f"{self.root}/device/{device}/halo"

    def echo(self, device: str) -> str:
        """A device's messages to itself, by which it measures its link."""
        return f"{self.root}/device/{device}/echo"

    def drill(self, device: str) -> str:
        """JSON drills for one device, which only clients may write."""
        return f"{self.root}/device/{device}/drill"

    def response(self, client: str, reference: str) -> str:
        """What agents tell a client of its drill `reference`, as JSON."""
        return f"{self.root}/device/{client}/response/{reference}"

    def beat(self, device: str) -> str:
        """A device's signs of life while it has requests (JSON, QoS 0)."""
        return f"{self.root}/device/{device}/beat"

    def plan(self, model: str) -> str:
        """The retained JSON header of a model's current plan."""
        return f"{self.root}/model/{model}/plan"

    def deployment(self, model: str) -> str:
        """The retained JSON record of what is deployed as a model, for coordinators."""
        return f"{self.root}/model/{model}/deployment"

    def infer(self, model: str, request: str | None = None, *, tensors: bool = False) -> str:
        """Requests: pictures or tensors; without an id the answering device gives one.

        Raises:
            ValueError: if tensors are asked for without an id.
        """
        if request is None and tensors:
            raise ValueError("a request for tensors needs an id")
        levels = ["infer", *([request] if request else []), *(["tensors"] if tensors else [])]
        return f"{self.root}/model/{model}/{'/'.join(levels)}"

    def result(self, model: str, request: str) -> str:
        """The answer to one request."""
        return f"{self.root}/model/{model}/result/{request}"

    def trace(self, model: str, request: str) -> str:
        """Each device's timings of one request (JSON, QoS 0)."""
        return f"{self.root}/model/{model}/trace/{request}"

    def blob(self, digest: str) -> str:
        """Chunks (msgpack) of one content-addressed blob."""
        return f"{self.root}/blob/{digest}"

    def address(self, topic: str) -> Address:
        """Return what `topic` addresses.

        Raises:
            WireError: if it is none of this fleet's.
        """
        address = self.parse(topic)
        if address is None:
            raise WireError("not a topic of this fleet")
        return address

    def parse(self, topic: str) -> Address | None:
        """Return what `topic` addresses, or None where it is none of this fleet's."""
        levels = topic.removeprefix(f"{self.root}/").split("/")
        known = topic.startswith(f"{self.root}/") and len(levels) > 1
        if not known or not all(NAME.fullmatch(level) for level in levels):
            return None
        area, subject, *rest = levels
        match rest:
            case ["infer", request, "tensors"] if area == "model":
                return Address(Kind.INFER, subject, request, tensors=True)
            case [kind] if kind in _PLAIN.get(area, ()):
                return Address(Kind(kind), subject)
            case [kind, request] if area == "model" and kind in _PER_REQUEST:
                return Address(Kind(kind), subject, request)
            case [] if area == "blob":
                return Address(Kind.BLOB, subject)
        return None


_PLAIN = {
    "device": ("status", "inbox", "halo", "echo", "drill", "beat"),
    "model": ("plan", "deployment", "infer"),
}
_PER_REQUEST = ("infer", "result", "trace")
