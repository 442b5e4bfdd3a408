"""Drills: what the core says is to fail, fails; the client that asked is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.adapters import faults
from agent.adapters.logs import log
from agent.errors import WireError
from agent.wire.drill import Drill, Drilled, State
from agent.wire.messages import decode_json, encode_json

if TYPE_CHECKING:
    from agent.adapters.mqtt import Received
    from agent.service.member import Member


def read_drill(message: Received) -> Drill:
    """Return the drill that a message asks for.

    Raises:
        WireError: if it is none, or may be an old one.
    """
    if message.retained or message.redelivered:
        raise WireError("a drill that is kept or repeated could hit twice")
    drill: Drill = decode_json(message.payload, Drill)
    return drill


def tell(member: Member, sender: str, drilled: Drilled) -> None:
    """Tell the client `sender` how its drill goes."""
    member.publish(member.topics.response(sender, drilled.reference), encode_json(drilled))


def fail(member: Member, drill: Drill) -> None:
    """Fail as `drill` says; returns once this process is awake again, if ever."""
    log("warning", f"drill of {drill.sender}: {drill.fault}", request=drill.request)
    _told(member, drill, "met")
    if drill.fault == "die":
        faults.die()
    elif drill.fault == "freeze":
        faults.freeze(drill.seconds)
    else:
        member.drop_links(drill.seconds)
    # A dropped link's messages wait for it to be back.
    _told(member, drill, "over")


def _told(member: Member, drill: Drill, state: State) -> None:
    tell(member, drill.sender, Drilled(member.name, drill.reference, state))
