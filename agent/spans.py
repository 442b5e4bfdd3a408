"""Spans: what a device does, and when; what timelines are made of, predicted or measured (pure)."""

from __future__ import annotations

from typing import Literal, NamedTuple

Activity = Literal["decode", "compute", "wait", "send", "receive"]


class Span(NamedTuple):
    """One activity of a device for one request; times in seconds since the request arrived.

    `peer` is the other device of a send or a receive, `nbytes` what travels.
    """

    device: str
    activity: Activity
    start_s: float
    end_s: float
    label: str
    peer: str = ""
    nbytes: int = 0
