"""Drills: a client asks an agent to fail at a point of a request, and is told how that goes.

`Drill` goes to `device/<id>/drill`, which only clients may write; the agent's `Drilled` to
`device/<sender>/response/<reference>`. Both are JSON.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from agent.wire.messages import DeviceId, RequestId, Text
from agent.wire.model import ModelName

# A frozen agent's supervisor takes it for dead after 30 s (WatchdogSec in systemd/).
MAX_FAULT_S = 60.0
MAX_ARMED_S = 300.0

Fault = Literal["die", "freeze", "drop"]
Point = Literal["received", "step", "sent", "answer"]
State = Literal["armed", "refused", "met", "missed", "lapsed", "over"]


class Drill(Struct, frozen=True, forbid_unknown_fields=True):
    """Fail so, once, when `request` of `model` reaches `point`; forget it after `lapses_s`.

    `session` is the life of the agent's process that is meant, so that a drill can never hit the
    one that comes after it. `seconds` is how long a freeze or a dropped link lasts.

    The points: `received`, before anything is done; `step`, before the `step`-th step is run (from
    1), or the last where there are fewer; `sent`, after the first halo was; `answer`, before the
    answer is published.
    """

    reference: RequestId
    sender: DeviceId
    session: Text
    fault: Fault
    point: Point
    model: ModelName
    request: RequestId
    step: Annotated[int, Meta(ge=1, le=100_000)] = 1
    seconds: Annotated[float, Meta(ge=0.1, le=MAX_FAULT_S)] = 5.0
    lapses_s: Annotated[float, Meta(ge=0.1, le=MAX_ARMED_S)] = 30.0


class Drilled(Struct, frozen=True):
    """How a drill goes: armed or refused, then met, missed or lapsed, and over once it is.

    It is missed where the request was answered without having reached the point on this device.
    An agent that dies tells no end.
    """

    device: DeviceId
    reference: RequestId
    state: State
    reason: Text = ""
