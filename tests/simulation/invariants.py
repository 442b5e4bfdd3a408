"""The promises that are held against every event: one answer, right or named, in time; no leak.

Whatever happens: a result is exact; nobody answers what he has seen answered, or under a plan that
he knows to be void; plans never go back. While nothing disturbs the fleet (`calm`) there is one
answer, a result, and no silence. `disturb` says until when a fault is felt.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.wire.messages import fingerprint
from agent.worker import events as ev
from agent.worker.early import MAX_BYTES
from agent.worker.endings import STANDBY_RANK
from agent.worker.overload import LATE, unanswered
from agent.worker.requests import RANK_DELAY_S
from tests.simulation import compute
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.wire.messages import Answer, PlanHeader, Prepared, Ready, Status
    from tests.simulation.broker import Message
    from tests.simulation.fleet import Fleet
    from tests.simulation.nodes import Agent, Coordinator

SLACK_S = 1.0
# From the end of the last fault: connecting again, settling, planning, preparing, computing.
RECOVERY_S = 25.0
# From the moment at which a device falls silent whose loss is prepared for: noticing it, computing.
SOON_S = 3.0
LAST_RANK_S = STANDBY_RANK * RANK_DELAY_S
STARTING_S = 8.0
# A coordinator may be away for long when it is told.
REMOVAL_S = 80.0
MOST_JOINS = 3
JOINS_WITHIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Given:
    """An answer as it was published."""

    at: float
    session: str
    epoch: int
    ok: bool


@dataclass(slots=True)
class Asked:
    """A request: what the client sent, what became of it, which agents' lives have it.

    `heard` says whether any agent was connected when the broker accepted it.
    """

    model: str
    name: str | None
    picture: int | None
    life_s: float
    at: float
    copies: int = 1
    accepted: int = 0
    repeated: int = 0
    due: float = 0.0
    heard: bool = False
    given: list[Given] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    holders: list[Agent] = field(default_factory=list)


class Referee:
    """Sees all that cores are told and do."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._world = fleet.world
        self.asked: dict[str, Asked] = {}
        self.disturbed_until = STARTING_S
        self.jumped_at = 0.0
        self._removed_at: dict[str, float] = {}
        self._known: dict[str, set[tuple[str, str]]] = {}
        self._orders: dict[tuple[str, str], tuple[int, str]] = {}
        self._heard: dict[tuple[str, str], tuple[int, str]] = {}
        self._prepared: set[tuple[str, str, int]] = set()
        self._ready: set[tuple[str, str, str]] = set()
        self._statuses: dict[str, dict[str, str]] = {}
        self._seen: set[int] = set()
        self._keep: list[Message] = []
        self._devices: dict[tuple[str, str], tuple[str, ...]] = {}
        self._announced_at: dict[str, float] = {}
        self._joins: dict[tuple[str, str, str], list[float]] = {}

    # Faults --------------------------------------------------------------------------------

    def disturb(self, until: float) -> None:
        """Note that what happens up to `until` may suffer from a fault."""
        self.disturbed_until = max(self.disturbed_until, until)

    def removed(self, model: str) -> None:
        """Note that a client removes a model."""
        self._removed_at[model] = self._world.now

    def calm(self, since: float) -> bool:
        """Whether nothing has disturbed the fleet since then."""
        return since >= self.disturbed_until

    def fail(self, text: str) -> None:
        """Stop the run.

        Raises:
            Violation: always.
        """
        raise Violation(text)

    # Requests ------------------------------------------------------------------------------

    def sent(
        self, model: str, name: str | None, picture: int | None, content: bytes, life_s: float
    ) -> None:
        """Note a request that a client is about to send."""
        asked = self.asked.get(fingerprint(content))
        if asked is not None:
            asked.copies += 1
            return
        self.asked[fingerprint(content)] = Asked(model, name, picture, life_s, self._world.now)

    def accepted(self, message: Message) -> None:
        """Take a message that the broker accepted."""
        if message.kind not in ("infer", "result"):
            return
        again = id(message) in self._seen
        self._seen.add(id(message))
        self._keep.append(message)
        if message.kind == "infer":
            self._request_accepted(message, again=again)

    def _request_accepted(self, message: Message, *, again: bool) -> None:
        _, content, _ = message.content
        asked = self.asked[fingerprint(content)]
        self._world.note(f"broker: request {message.content[0]} of {message.sender}")
        if again:
            asked.repeated += 1
        elif message.sender == "user":
            asked.accepted += 1
            asked.heard |= self._is_heard(message.subject)
            asked.due = (message.expires_at or 0.0) + LAST_RANK_S + SLACK_S
            self._world.at(asked.due, self._check_due, asked)
            self._world.after(SOON_S, self._check_soon, asked)

    def _is_heard(self, model: str) -> bool:
        # Otherwise it lies in the broker's queues, and one device may be the only one to get it.
        links = [agent.link for agent in self._fleet.agents() if model in agent.watched]
        connections = [link.connection for link in links]
        return any(c is not None and c.broker_open and not c.blocked for c in connections)

    def request_arrived(self, agent: Agent, event: ev.RequestArrived) -> None:
        """Note which life of an agent keeps a request."""
        asked = self.asked[event.input]
        core = agent.core
        key = ev.RequestKey(event.model, event.request or "", event.input)
        kept = [r for r in core._requests.values() if r.key.input == event.input]
        kept += [r for r in core._unclaimed if r.key.input == event.input]
        # A redelivered copy may be taken for the other one; one that got a name is no other.
        is_sent = event.request == asked.name and not event.redelivered
        is_new = is_sent or len(kept) > asked.holders.count(agent)
        if is_new and (key in core._requests or key in core._unclaimed):
            asked.holders.append(agent)
        active = core._plans.active.items()
        mine = {model for model, plan in active if plan.header.devices[0] == agent.name}
        waiting = [r for r in unanswered(core._requests.values()) if r.key.model in mine]
        bound = self._fleet.limits.max_in_flight
        is_new = key in core._requests and core._requests[key].arrived == agent.clock()
        if event.model in mine and is_new and len(waiting) > bound:
            self.fail(f"{agent.name} takes {event.request} on, more than its bound")

    def result_seen(self, agent: Agent, key: ev.RequestKey) -> None:
        """Note that an agent knows a request to be answered."""
        self._known.setdefault(agent.session, set()).add((key.request, key.input))

    def answering(self, agent: Agent, answer: Answer) -> None:
        """Judge an answer that an agent is about to publish."""
        asked = self.asked[answer.input]
        code = answer.error.code if answer.error else "result"
        self._world.note(f"{agent.name} answers {answer.request}: {code}, epoch {answer.epoch}")
        if answer.ok:
            self._check_result(agent, answer, asked)
        else:
            self._check_error(agent, answer, asked)
        allowed = max(asked.copies, asked.accepted) + asked.repeated
        if len(asked.given) >= allowed:
            self._check_duplicate(agent, answer, asked)
        asked.codes.append(code)
        asked.given.append(Given(self._world.now, agent.session, answer.epoch, answer.ok))

    def _check_result(self, agent: Agent, answer: Answer, asked: Asked) -> None:
        key = ev.RequestKey(answer.model, answer.request, answer.input)
        plan = agent.core._requests[key].plan
        if plan is None or answer.result is None or asked.picture is None:
            raise Violation(f"{agent.name} has a result for {answer.request}, which has none")
        header = plan.header
        right = compute.right(header.programs[agent.name].digest, asked.picture)
        if answer.result["bytes"] != right:
            self.fail(f"wrong result for {answer.request} from {agent.name}")
        if header.order < self._heard.get((agent.session, answer.model), (0, "")):
            self.fail(f"{agent.name} answers {answer.request} under a plan that is void")

    def _check_error(self, agent: Agent, answer: Answer, asked: Asked) -> None:
        code = answer.error.code if answer.error else ""
        name = f"{answer.request} from {agent.name}"
        if code == "input":
            if asked.picture is not None:
                self.fail(f"refused the good payload of {name}")
        elif code == "overloaded":
            late = answer.error is not None and answer.error.text == LATE
            if agent.core.in_flight < (2 if late else self._fleet.limits.max_in_flight):
                self.fail(f"overloaded without a load: {name}")
        elif code == "model":
            if self._world.now > self._removed_at.get(answer.model, -1e9) + REMOVAL_S:
                self.fail(f"model removed, but it was not: {name}")
        elif code == "deadline":
            end = asked.at + asked.life_s
            calm = self.calm(end - RECOVERY_S) and asked.at > self.jumped_at and asked.heard
            answered = any(given.ok for given in asked.given)
            if asked.picture is not None and calm and asked.life_s > 1.0 and not answered:
                self.fail(f"no result in time though nothing was wrong: {name}")
            if end - self._world.now > SLACK_S and self.calm(asked.at):
                self.fail(f"the deadline of {name} has not passed")
        else:
            self.fail(f"a device could not compute: {answer.error}, {name}")

    def _check_duplicate(self, agent: Agent, answer: Answer, asked: Asked) -> None:
        name = f"second answer to {answer.request} from {agent.name}"
        if (answer.request, answer.input) in self._known.get(agent.session, ()):
            self.fail(f"{name}, which has seen the first one")
        if any(given.epoch != answer.epoch for given in asked.given):
            return
        # Where two plans meet, the first device of each may name the same request.
        met = asked.name is None and asked.at < self._announced_at.get(answer.model, 0.0) + SLACK_S
        if self.calm(asked.at - 1) and not met:
            self.fail(name)

    def _check_due(self, asked: Asked) -> None:
        if self.missing(asked) and self.calm(asked.due - LAST_RANK_S - 2 * SLACK_S):
            kept = [agent for agent in asked.holders if agent.alive and agent.link.connected]
            if kept:
                self.fail(f"no answer to {asked.name} in time; {kept[0].name} has it")

    def fell_silent(self) -> None:
        """Note that a device was frozen or cut off: others are to finish what is in flight."""
        for asked in self.asked.values():
            if asked.accepted and self.missing(asked):
                self._world.after(SOON_S, self._check_soon, asked)

    def _check_soon(self, asked: Asked) -> None:
        lives = asked.at + asked.life_s > self._world.now
        kept = any(agent.alive and agent.name not in self._fleet.silent for agent in asked.holders)
        if lives and kept and self.missing(asked) and self._fleet.is_prepared(asked.model):
            self.fail(f"{asked.name} still waits for a device that fell silent {SOON_S} s ago")

    def missing(self, asked: Asked) -> bool:
        """Whether a request lacks an answer."""
        kept = Counter(agent.session for agent in asked.holders if agent.alive)
        most = max(kept.values(), default=0)
        return len(asked.given) < min(asked.copies, asked.accepted, most)

    # Agents --------------------------------------------------------------------------------

    def plan_heard(self, agent: Agent, model: str, header: PlanHeader | None) -> None:
        """Note a plan that was announced to an agent."""
        key = (agent.session, model)
        if header is None:
            self._heard.pop(key, None)
            self._orders.pop(key, None)
        elif header.order > self._heard.get(key, (0, "")):
            self._heard[key] = header.order

    def handled(self, agent: Agent) -> None:
        """Check a worker core after an event."""
        core = agent.core
        for model, plan in core._plans.active.items():
            order = plan.header.order
            if order < self._orders.get((agent.session, model), order):
                self.fail(f"{agent.name} went back to an older plan of {model}")
            self._orders[agent.session, model] = order
        bound = 4 * self._fleet.limits.max_in_flight
        if core.in_flight > bound or len(core._unclaimed) > bound:
            self.fail(f"{agent.name} has more requests than its bound")
        if core._early._bytes > MAX_BYTES:
            self.fail(f"{agent.name} keeps more early pieces than its bound")

    def job_begins(self, agent: Agent) -> None:
        """Check that the executor is free."""
        if agent.busy:
            self.fail(f"{agent.name} has two jobs at a time")

    # Coordinators --------------------------------------------------------------------------

    def status_heard(self, coordinator: Coordinator, status: Status) -> None:
        """Note what a coordinator was told of a device."""
        heard = self._statuses.setdefault(coordinator.session, {})
        if status.role == "agent" and status.state == "online":
            heard[status.device] = status.session
        elif status.ends(heard.get(status.device, "")):
            del heard[status.device]

    def suspected(self, coordinator: Coordinator) -> None:
        """Check that no device is taken for dead that is as lively as ever."""
        held = coordinator.core._members._suspects
        for device, suspect in held.items():
            if suspect.returns_at is not None or suspect.since != coordinator.clock():
                continue
            steady = self._fleet.steady(device) and self._fleet.steady(coordinator.name)
            node = self._fleet.nodes[device]
            there = node.alive and node.link.connected and node.told_session == suspect.session
            # A device that has nothing of what others wait for is silent, and of no help to them.
            beats = there and node.core._pulse.due() is not None
            if beats and steady and not self._fleet.weather.dropped:
                self.fail(f"{device} is suspected without a reason")

    def planning(self, coordinator: Coordinator) -> None:
        """Check that a coordinator plans with the devices that it knows to be there."""
        members = coordinator.core._members._members
        for device, session in self._statuses.get(coordinator.session, {}).items():
            node = self._fleet.nodes.get(device)
            there = node is not None and node.told_session == session and not node.leaving
            there = there and node is not None and node.alive and node.link.connected
            steady = self._fleet.steady(device) and self._fleet.steady(coordinator.name)
            if there and steady and device not in members:
                self.fail(f"{coordinator.name} plans without {device}, which is there")

    def prepared_heard(self, coordinator: Coordinator, message: Prepared) -> None:
        """Note what an agent says it has prepared."""
        if message.ok:
            key = (coordinator.session, f"{message.device} {message.model}", message.epoch)
            self._prepared.add(key)

    def ready_heard(self, coordinator: Coordinator, message: Ready) -> None:
        """Note what an agent says it has loaded for plans after a loss."""
        for program in message.programs:
            self._ready.add((coordinator.session, message.device, program))

    def announcing(self, coordinator: Coordinator, header: PlanHeader) -> None:
        """Check that all devices of a plan had it, or its program, in this coordinator's life."""
        self._check_joins(coordinator, header)
        retained = self._fleet.announced.get(header.model, (0, ""))
        if header.order <= retained:
            return
        self._fleet.announced[header.model] = header.order
        self._announced_at[header.model] = self._world.now
        for device in header.devices:
            key = (coordinator.session, f"{device} {header.model}", header.epoch)
            ready = (coordinator.session, device, header.programs[device].digest)
            if key not in self._prepared and ready not in self._ready:
                self.fail(f"epoch {header.epoch} is announced, but {device} has not prepared it")

    def _check_joins(self, coordinator: Coordinator, header: PlanHeader) -> None:
        key = (coordinator.session, header.model)
        before = self._devices.get(key, header.devices)
        self._devices[key] = header.devices
        for device in set(header.devices) - set(before):
            joins = self._joins.setdefault((*key, device), [])
            joins.append(self._world.now)
            recent = [at for at in joins if self._world.now - at < JOINS_WITHIN_S]
            # Where there is no other device, one that comes and goes is better than none.
            if len(recent) > MOST_JOINS and len(header.devices) > 1:
                self.fail(f"{device}, which comes and goes, joins plans again and again")

    # The end -------------------------------------------------------------------------------

    def check_answered(self) -> None:
        """Check that every request which somebody has kept until now was answered."""
        for asked in self.asked.values():
            kept = [agent for agent in asked.holders if agent.alive]
            if self.missing(asked) and kept and self._world.now > asked.due:
                self.fail(f"{asked.name} was never answered; {kept[0].name} had it")

    def check_results(self, contents: Iterable[bytes]) -> None:
        """Check that these requests have results."""
        for content in contents:
            asked = self.asked[fingerprint(content)]
            if not any(given.ok for given in asked.given):
                self.fail(f"the fleet is whole again, but {asked.name} has no result")

    def check_offers(self) -> None:
        """Check that agents have given up what no coordinator offers any more."""
        for agent in self._fleet.agents():
            for model, plan in agent.core._plans._pending.items():
                deployments = [node.core._catalog.get(model) for node in self._fleet.coordinators()]
                offered = {d.offered.digest for d in deployments if d and d.offered}
                if not plan.announced and plan.digest not in offered:
                    self.fail(f"{agent.name} prepares a plan of {model} that was given up")

    def check_agent(self, agent: Agent) -> None:
        """Check that an agent that was quiet for long has nothing left over."""
        core = agent.core
        left = {
            "requests": len(core._requests),
            "requests without an id": len(core._unclaimed),
            "early pieces": len(core._early._pieces),
            "plans in preparation": len(core._plans._pending),
            "fetches": len(agent._fetches),
        }
        for what, count in left.items():
            if count:
                self.fail(f"{agent.name} still has {count} {what}")
        used = {plan.digest for plan in core._plans.active.values()}
        spares = {spare.name for spare in core._plans.spares._all()}
        if set(agent.loaded) != used | spares or set(agent.programs) != used:
            self.fail(f"{agent.name} keeps plans loaded that nobody uses")

    def check_plans(self, wanted: dict[str, int | None]) -> None:
        """Check that broker, coordinator and agents agree on what is served."""
        fleet = self._fleet
        retained = {s: m.content for (k, s), m in fleet.broker.retained.items() if k == "plan"}
        served = {model for model, version in wanted.items() if version is not None}
        if set(retained) != served:
            self.fail(f"the broker has plans of {sorted(retained)}, served are {sorted(served)}")
        for agent in fleet.agents():
            plans = agent.core._plans.active
            mine = {m: h.digest for m, h in retained.items() if agent.name in h.devices}
            if {m: p.digest for m, p in plans.items()} != mine:
                self.fail(f"{agent.name} serves other plans than those announced")
        there = {agent.name for agent in fleet.agents()}
        leaders = [node for node in fleet.coordinators() if node.core._leadership.leads]
        if len(leaders) != 1:
            self.fail(f"{len(leaders)} coordinators lead")
        for model, deployment in leaders[0].core._catalog.deployments.items():
            if deployment.planned.keys() != there:
                self.fail(f"{model} is planned for {sorted(deployment.planned)}, not {there}")
        for node in fleet.coordinators():
            known = node.core._catalog
            if known.deployments.keys() != served or known.lacking:
                self.fail(
                    f"{node.name} knows of {sorted(known.deployments)}, lacks {known.lacking}"
                )
