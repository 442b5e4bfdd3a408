"""Effects of the transfer cores: what the service that drives them must do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.wire.messages import Want


@dataclass(frozen=True, slots=True)
class Listen:
    """Subscribe to the topic of a blob."""

    digest: str


@dataclass(frozen=True, slots=True)
class Ignore:
    """Unsubscribe from the topic of a blob."""

    digest: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Send `want` to device `holder`."""

    holder: str
    want: Want


@dataclass(frozen=True, slots=True)
class Keep:
    """Verify and store `content` under `digest`; tell the fetcher with `stored` or `rejected`."""

    digest: str
    content: bytearray


@dataclass(frozen=True, slots=True)
class Done:
    """Every blob of fetch `ticket` is in the store."""

    ticket: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Fetch `ticket` ended because blob `digest` cannot be had; `reason` is for people."""

    ticket: str
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class PublishChunk:
    """Read chunk `index` of blob `digest` from the store and publish it; then call `published`."""

    digest: str
    index: int


Effect = Listen | Ignore | Ask | Keep | Done | Failed | PublishChunk
