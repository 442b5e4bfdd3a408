"""The name under which Python programs use HaloMQ: `from halomq import Client`."""

from agent.client import Client
from agent.errors import HaloMQError

__all__ = ["Client", "HaloMQError"]
