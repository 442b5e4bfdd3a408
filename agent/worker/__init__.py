"""Sans-IO core of an agent: takes events with the time, returns effects. It does no I/O."""

from agent.worker.core import WorkerCore

__all__ = ["WorkerCore"]
