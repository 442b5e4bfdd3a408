"""Carries a drill out: its director wired to the broker, in the thread that calls `run`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from agent.adapters.mqtt import Connected, Disconnected, Link, LinkEvent, Received
from agent.drill import director as dr
from agent.drill.load import Ask
from agent.errors import BrokerError, FleetError, HaloMQError, WireError
from agent.service.loop import Loop, monotonic
from agent.wire.drill import Drilled
from agent.wire.messages import PlanHeader, Status, decode_answer, decode_json, encode_json
from agent.wire.topics import Kind, Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.config import Config
    from agent.drill.course import Course
    from agent.drill.director import Director, Effect, Event
    from agent.drill.report import Report
    from agent.drill.samples import Sample


WATCH_S = 0.25


class Runner:
    """A drill of user `name` on the fleet of `config`.

    Args:
        config: where the fleet is.
        name: the client's name at the broker.
        course: what to do.
        samples: what to send, in turns; where the outputs of one are not known, those of its first
            answer are taken for right.
        watch: is called a few times a second.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        course: Course,
        samples: Sequence[Sample],
        watch: Callable[[Director], None],
    ) -> None:
        self._course = course
        self._samples = samples
        self._name = name
        self._topics = Topics(config.fleet)
        self._watch = watch
        token = secrets.token_hex(4)
        references = [sample.outputs for sample in samples]
        self._director = dr.Director(course, references, name, f"drill-{token}")
        self._link = Link(f"halomq-{config.fleet}-{name}-{token}", config.broker)
        self._loop = Loop(self._link, self, monotonic)
        self._was_connected = False
        self._watch_at = 0.0
        self._failure: HaloMQError | None = None

    def run(self) -> Report:
        """Run the drill to its end.

        Raises:
            FleetError: if the fleet does not serve before anything fails.
            BrokerError: if the broker cannot be reached, or takes no such request.
        """
        self._loop.run()
        if self._failure is not None:
            raise self._failure
        if self._director.failure is not None:
            raise FleetError(self._director.failure)
        return self.report()

    def report(self) -> Report:
        """Return what was seen so far."""
        return self._director.report()

    def on_link(self, event: LinkEvent) -> None:
        """Take an event of the connection."""
        match event:
            case Connected():
                if not self._was_connected:
                    self._subscribe()
                self._was_connected = True
            case Disconnected(reason, fatal):
                if fatal or (self._link.gave_up and not self._was_connected):
                    self._fail(BrokerError(reason))
            case Received() if (seen := self._read(event)) is not None:
                self._handle(seen)

    def on_post(self, item: object) -> None:
        """Nothing is posted: there is one thread."""

    def on_turn(self, now: float) -> float | None:
        """Do what is due."""
        if not self._was_connected:
            return None
        self._handle(dr.Tick())
        if now >= self._watch_at:
            self._watch_at = now + WATCH_S
            self._watch(self._director)
        if self._director.done:
            self._loop.stop()
        return self._director.next_timer(now)

    def _subscribe(self) -> None:
        topics, model = self._topics, self._course.model
        self._link.subscribe(
            topics.status("+"),
            topics.plan(model),
            topics.result(model, "+"),
            topics.response(self._name, "+"),
        )

    def _fail(self, error: HaloMQError) -> None:
        self._failure = error
        self._loop.stop()

    def _read(self, message: Received) -> Event | None:
        try:
            if message.topic.startswith(self._topics.response(self._name, "")):
                return dr.DrilledSeen(decode_json(message.payload, Drilled))
            address = self._topics.parse(message.topic)
            if address is None or not message.payload:
                return None
            if address.kind is Kind.STATUS:
                return dr.StatusSeen(decode_json(message.payload, Status))
            if address.kind is Kind.PLAN:
                return dr.PlanSeen(decode_json(message.payload, PlanHeader))
            answer = decode_answer(message.payload)
        except WireError:
            # What another version of HaloMQ says cannot be counted.
            return None
        return dr.AnswerSeen(address.request or "", answer, message.redelivered)

    def _handle(self, event: Event) -> None:
        for effect in self._director.handle(event, monotonic()):
            try:
                self._perform(effect)
            except BrokerError as error:
                self._fail(error)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Ask):
            self._link.publish(
                self._topics.infer(self._course.model, effect.request, tensors=True),
                self._samples[effect.payload].payload,
                expires_s=self._course.timeout_s,
            )
        else:
            self._link.publish(
                self._topics.drill(effect.device),
                encode_json(effect.drill),
                expires_s=dr.ARMING_S,
            )
