"""Which requests the answering device turns away where there are more than can be answered.

Rules: clients share the bound (max-min): who holds the most gives way to who holds less; of one
client's requests the newest stays, for pictures of a camera are worth most while they are new; a
request that those before it leave no time for is turned away at once, unless nothing else is in
flight; what has been computed on gives way after what has not.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from agent.worker.requests import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.worker.requests import Request

MAX_BYTES = 64 << 20

FULL = "the client has its share of the {bound} requests in flight; try again later"
NEWER = "a newer one of the client took its place among the {bound} requests in flight"
SHARED = "a client with fewer took its place among the {bound} requests in flight"
CROWDED = "answers do not get away as fast as requests come"
LATE = "the requests before it leave it no time"


def unanswered(requests: Iterable[Request]) -> list[Request]:
    """Return the requests that have no answer yet, in the order of their turns."""
    waiting = [request for request in requests if request.state is not State.ANSWERED]
    return sorted(waiting, key=lambda request: (request.turn, request.number))


def fits(waiting: Sequence[Request], bound: int, max_bytes: int) -> bool:
    """Tell whether there is room for `waiting`."""
    nbytes = sum(len(request.payload) for request in waiting)
    return len(waiting) <= bound and (nbytes <= max_bytes or len(waiting) == 1)


def surplus(waiting: Sequence[Request], newcomer: Request) -> tuple[Request, str]:
    """Return which of `waiting`, the newcomer among them, has to go, and why."""
    counts = Counter(request.client for request in waiting)
    client, most = max(counts.items(), key=lambda entry: (entry[1], entry[0]))
    # A client that would have one more only with its newest request gives up one of its own.
    own = counts[newcomer.client] >= most
    losing = newcomer.client if own else client
    # Who has the turn is never chosen: nothing would be answered where requests come fast.
    rest = [r for r in waiting[1:] if r.client == losing and r is not newcomer]
    if not rest:
        return newcomer, FULL
    untouched = [request for request in rest if not request.meter.steps]
    return (untouched or rest)[0], NEWER if own else SHARED


def late(waiting: Sequence[Request], spacing_s: float, now: float) -> list[Request]:
    """Return those of one model's `waiting` that cannot be answered before their deadlines.

    Older requests go where that leaves time for newer ones of the same client.
    """
    gone: list[Request] = []
    kept: list[Request] = []
    for request in waiting:
        kept.append(request)
        while _is_late(request, len(kept), spacing_s, now) and request in kept:
            older = [r for r in kept[1:-1] if r.client == request.client]
            gone.append(older[0] if older else request)
            kept.remove(gone[-1])
    return gone


def _is_late(request: Request, place: int, spacing_s: float, now: float) -> bool:
    # The first one costs nobody's time, whatever is known of how long it takes. Others are worked
    # on while devices wait for each other, so one that is begun may be nearly done.
    rest = place - 1 if request.meter.steps else place
    return place > 1 and now + rest * spacing_s > request.deadline
