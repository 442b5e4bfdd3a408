"""An attack on live services: what it sends, and what must hold beside it.

Nothing raises, queues keep their bounds, every request is answered once, and good ones exactly.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Self

from agent.adapters.mqtt import Received
from agent.errors import WireError
from agent.wire import messages as wire
from agent.wire.calibration import Timing, Timings
from agent.wire.drill import Drill
from agent.wire.program import BlobRef
from agent.wire.topics import Kind
from agent.worker import early
from agent.worker.plans import MAX_MODELS
from tests.fuzz.bus import BOSS, MAX_IN_FLIGHT, USER, Bus
from tests.fuzz.mutate import GHOST, bombs, disarm, mutate, npy
from tests.simulation import compute

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

DEVICES = ("dev-a", "dev-b", "dev-c")
MODEL = "eyes"
SHOTS = 20
MAX_POSTED = 2000
ODD_IDS = ("..", "a/b", "+", "#", "", "x" * 65, "é", "-", "a b", "a\0b", "\ufeff")
ODD_TOPICS = ("$SYS/broker", "a/#", "+", "", "halomq/1/fuzz/device/dev-a/inbox", "t" * 60_000)
ODD_TYPES = (None, "image/png", "", "\ufeff" * 20_000, "application/x-python")
ODD_TIMES = (None, 0, 1, 2**32 - 1)


class Attack:
    """A fleet in `folder` that serves a model, and messages of its life to make worse ones of."""

    def __init__(self, folder: Path) -> None:
        self.bus = Bus(folder, DEVICES)
        self._bombs = list(bombs().values())
        self._count = 0
        self._asked: set[str] = set()
        self.shots = 0

    def __enter__(self) -> Self:
        bus = self.bus.__enter__()
        bus.deploy(MODEL)
        self.check_serves()
        # A device goes and comes back, so that there are standby blobs and a second plan.
        gone = wire.Status("dev-c", bus.agents["dev-c"].session, "offline")
        bus.publish(Received(bus.topics.status("dev-c"), wire.encode_json(gone), False, False))
        bus.settle(lambda: self._epoch() > 1, "the loss is planned around")
        bus.agents["dev-c"].publish_status()
        bus.settle(lambda: self._epoch() > 2, "the device is back")
        self.check_serves()
        names = {MODEL: GHOST, **{f"good-{n}": GHOST for n in range(self._count + 1)}}
        kinds: dict[tuple[Kind, str], Received] = {}
        for message in bus.seen:
            address = bus.topics.address(message.topic)
            payload = disarm(message.payload, names)
            told = payload[:40] if address.kind in (Kind.INBOX, Kind.HALO) else b""
            kinds.setdefault((address.kind, str(told)), message)
        for topic, payload in self._rare():
            address = bus.topics.address(topic)
            kinds[address.kind, str(payload[:40])] = Received(topic, payload, False, False)
        self._seeds = list(kinds.items())
        self._names = names
        return self

    def __exit__(self, *error: object) -> None:
        self.bus.__exit__(*error)

    def _epoch(self) -> int:
        plan = self.bus.retained.get(self.bus.topics.plan(MODEL))
        header = wire.decode_json(plan.payload, wire.PlanHeader) if plan else None
        return header.epoch if header else 0

    def _rare(self) -> list[tuple[str, bytes]]:
        """Return messages that this short life of a fleet lacks."""
        nowhere = BlobRef("e" * 64, 1000)
        timings = Timings(nowhere.digest, "a processor", (Timing(0.5, 0.25), None))
        controls: list[wire.Control] = [
            wire.Calibrate(GHOST, BOSS, BOSS, nowhere, 1.0),
            wire.Calibrated("dev-a", GHOST, timings),
            wire.Absent(nowhere.digest, "gone"),
            wire.Remove(USER, "reference", GHOST),
            wire.Ready("dev-a", "a life", GHOST, nowhere.digest, (nowhere.digest,)),
        ]
        forward = wire.Forward(GHOST, GHOST, b"payload", 1.0, client="somebody")
        topics = self.bus.topics
        members = (BOSS, "dev-a")
        told = [(topics.inbox(m), wire.encode_json(c)) for m in members for c in controls]
        drill = Drill("reference", USER, "a life", "die", "step", GHOST, GHOST)
        told.append((topics.drill("dev-a"), wire.encode_json(drill)))
        beat = wire.Beat("dev-a", "a life", (GHOST,))
        told.append((topics.beat("dev-a"), wire.encode_json(beat)))
        return [*told, (topics.halo("dev-b"), wire.encode_msgpack(forward))]

    @property
    def kinds(self) -> set[str]:
        """The kinds of messages that are damaged: topics', and the tags of those on inboxes."""
        found = set()
        for (kind, _), message in self._seeds:
            tag = re.search(rb'type(?:":"|[\xa0-\xbf])([a-z]+)', message.payload[:40])
            tagged = kind in (Kind.INBOX, Kind.HALO) and tag is not None
            found.add(tag[1].decode() if tagged and tag else kind.value)
        return found

    # What is sent --------------------------------------------------------------------------

    def shoot(self, random: Random) -> None:
        """Send one damaged message."""
        self.shots += 1
        if random.random() < 0.2:
            self._ask(random)
            return
        (kind, _), seed = random.choice(self._seeds)
        topic = seed.topic.replace(f"/model/{MODEL}/", f"/model/{GHOST}/")
        payload = mutate(random, disarm(seed.payload, self._names))
        if random.random() < 0.1:
            topic = topic.rpartition("/")[0] + "/" + random.choice(ODD_IDS)
        elif kind is Kind.STATUS:
            topic = self.bus.topics.status(random.choice((GHOST, "dev-a")))
        retained = random.random() < 0.2
        self.bus.publish(Received(topic, payload, retained, random.random() < 0.3))

    def _ask(self, random: Random) -> None:
        self._count += 1
        good = npy(compute.picture(self._count % compute.PICTURES))
        payload = random.choice((mutate(random, good), random.choice(self._bombs)))
        name = f"bad-{self._count}"
        topic = self.bus.topics.infer(MODEL, name, tensors=random.random() < 0.5)
        reply = random.choice(ODD_TOPICS) if random.random() < 0.1 else None
        message = Received(
            topic,
            payload,
            False,
            random.random() < 0.3,
            random.choice(ODD_TYPES),
            reply,
            random.choice((None, b"", bytes(60_000))),
            random.choice(ODD_TIMES),
            random.choice((None, "", "hostile", "\ufeff" * 20_000)),
        )
        try:
            self.bus.agents["dev-a"].check_reply(message)
            self._asked.add(name)
        except WireError:
            pass
        self.bus.publish(message)

    # What must hold ------------------------------------------------------------------------

    def check_serves(self) -> None:
        """Check that a good request is answered exactly, and nothing has gone wrong."""
        self._count += 1
        number = self._count % compute.PICTURES
        answer = self.bus.answer(MODEL, f"good-{self._count}", number)
        assert answer.ok, answer.error
        assert answer.outputs is not None
        (output,) = answer.outputs.values()
        assert bytes(output.data) == compute.version(MODEL, 0).right[number]
        faults, self.bus.faults = self.bus.faults, []
        assert not faults, faults
        for agent in self.bus.agents.values():
            core = agent._core
            assert core._early._bytes <= early.MAX_BYTES
            assert core.in_flight <= 4 * MAX_IN_FLIGHT
            assert len(core._unclaimed) <= 4 * MAX_IN_FLIGHT
            assert len(core._plans._pending.keys() | core._plans.spares.models) <= MAX_MODELS
        for loop in self.bus._loops:
            assert len(loop._mailbox) < MAX_POSTED

    def check_answered(self) -> None:
        """Check that every request which was to be answered was, once."""

        def told() -> Counter[str]:
            root = self.bus.topics.result(MODEL, "")
            return Counter(m.topic.removeprefix(root) for m in self.bus.seen if root in m.topic)

        self.bus.settle(lambda: self._asked <= told().keys(), f"answers to {self._asked}")
        assert {name: told()[name] for name in self._asked if told()[name] != 1} == {}
        self._asked.clear()
        self.bus.seen.clear()
