"""`halomq devices`: who is in the fleet and what it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cli.options import Json, configured, print_json
from agent.config import Config

if TYPE_CHECKING:
    from rich.table import Table

    from agent.wire.messages import Status


@configured
def devices(as_json: Json = False, *, config: Config) -> None:
    """List the fleet's devices: state, capacity, health, and the models that they serve.

    Example: halomq devices --host broker.local
    """
    import msgspec
    from rich.console import Console

    from agent.client import Client

    with Client(config=config) as client:
        statuses = client.devices()
        plans = client.plans()
    if as_json:
        print_json({"devices": msgspec.to_builtins(statuses), "plans": msgspec.to_builtins(plans)})
        return
    console = Console()
    console.print(_devices_table([s for s in statuses if s.role == "agent"]))
    for status in statuses:
        if status.role == "coordinator":
            part = "leads" if status.term else "on standby"
            state = part if status.state == "online" else status.state
            console.print(f"coordinator {status.device}: {state}")
            if status.held:
                console.print(f"  held back, for they come and go: {', '.join(status.held)}")
            for model in status.models:
                listed = ", ".join(model.devices) or "no device"
                console.print(f"  {model.name}: {model.state}, epoch {model.epoch}, on {listed}")
                if model.covered:
                    console.print(f"    prepared for the loss of any of {', '.join(model.covered)}")


def _devices_table(agents: list[Status]) -> Table:
    from rich.table import Table

    table = Table(title="devices")
    for column in ("device", "state", "cpu", "Gflop/s", "link", "memory free", "load", "°C"):
        table.add_column(column)
    table.add_column("serves")
    for status in agents:
        capacity, health = status.capacity, status.health
        if capacity is None or health is None:
            table.add_row(status.device, status.state)
            continue
        table.add_row(
            status.device,
            status.state,
            f"{capacity.cpu} x{capacity.threads}",
            f"{capacity.flops_per_s / 1e9:.1f}",
            f"{capacity.link_bytes_per_s / 1e6:.0f} MB/s, {capacity.link_latency_s * 1e3:.1f} ms",
            f"{health.memory_available_bytes >> 20} MiB",
            f"{health.load:.1f}",
            "" if health.temperature_c is None else f"{health.temperature_c:.0f}",
            ", ".join(f"{model} ({epoch})" for model, epoch in sorted(status.plans.items())),
        )
    return table
