"""The planner: from a model, devices and links to one dataflow program for each device.

It is pure (no sockets, clocks, threads or random numbers) and the only user of `onnx`.
"""

from agent.planner.cost import Device
from agent.planner.graph import Graph, read_graph
from agent.planner.importer import ImportedModel, import_model
from agent.planner.plan import Block, Plan, compile_plan
from agent.planner.program import check

__all__ = [
    "Block",
    "Device",
    "Graph",
    "ImportedModel",
    "Plan",
    "check",
    "compile_plan",
    "import_model",
    "read_graph",
]
