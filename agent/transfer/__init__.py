"""Sans-IO core that moves content-addressed blobs: one side wants, the other provides."""

from agent.transfer.fetcher import Fetcher
from agent.transfer.provider import Provider

__all__ = ["Fetcher", "Provider"]
