"""Devices measure the layers of what they serve, the plan follows, and a restart remembers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agent.adapters.fleet import ProcessFleet
from tests.field.support import Field, Reference, field_of, picture

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from agent.wire.messages import PlanHeader, Status

pytestmark = pytest.mark.field

RAN = "probes of"


def wait_measured(field: Field, model: str, devices: Iterable[str]) -> None:
    """Wait until a plan that was made with the devices' own times is served."""
    wanted = set(devices)

    def met(statuses: dict[str, Status], _plans: list[PlanHeader]) -> bool:
        shown = [m for s in statuses.values() for m in s.models if m.name == model]
        return any(m.state == "serving" and set(m.measured) == wanted for m in shown)

    field.wait_seen(met, f"figures of {wanted}")


def test_devices_measure_a_model_once_and_plans_follow(tmp_path: Path, defects: Reference) -> None:
    with ProcessFleet(tmp_path, 2) as fleet:
        field = field_of(fleet, tmp_path)
        field.wait_online()
        field.deploy(defects)
        wait_measured(field, defects.name, fleet.names)
        field.infer(defects, picture(1))
        assert all(field.log(name).count(RAN) == 1 for name in fleet.names)
        # Both forget what they know but for their disks; the device answers from its own.
        kept = [*(tmp_path / fleet.names[0] / "profiles").iterdir()]
        assert len(kept) == 1
        for name in (fleet.names[0], "coordinator"):
            fleet.kill(name)
        state = tmp_path / "coordinator" / "coordinator" / "deployments.json"
        saved = json.loads(state.read_bytes())
        assert all(item.pop("figures").keys() == set(fleet.names) for item in saved)
        state.write_text(json.dumps(saved))
        field.restart(fleet.names[0], "coordinator")
        wait_measured(field, defects.name, fleet.names)
        field.infer(defects, picture(2))
        assert all(field.log(name).count(RAN) == 1 for name in fleet.names)
