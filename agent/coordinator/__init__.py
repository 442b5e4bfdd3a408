"""Sans-IO core of the coordinator: membership, deployments, epochs, planning again."""

from agent.coordinator.core import CoordinatorCore

__all__ = ["CoordinatorCore"]
