"""Who sent a request, as all devices see it alike: clients share a fleet by these names."""

from __future__ import annotations

import re

MAX_NAME = 256
# `door-17`, `door.1731000000.25`: the client `door`, and its count.
COUNTED = re.compile(r"(.+?)(?:[-.][0-9]+)+")


def client_of(told: str | None, request: str | None, response_topic: str | None) -> str:
    """Return the name of a request's client, of at most 256 characters.

    That is what it says itself (the MQTT 5 user property `client`), else what comes before the
    count in a request id `name-17`, else the response topic; all others are one client, "".
    """
    if told:
        return told[:MAX_NAME]
    counted = COUNTED.fullmatch(request or "")
    if counted:
        return counted[1]
    return (response_topic or "")[:MAX_NAME]
