"""What a message of the right type may still have wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.errors import WireError

if TYPE_CHECKING:
    from agent.wire.messages import Deployed, PlanHeader, Status


def check_status(status: Status, device: str) -> Status:
    """Return a status that came on the topic of `device`.

    Raises:
        WireError: if it names another: the broker's access list can only tell topics apart.
    """
    if status.device != device:
        raise WireError(f"a status in the name of {status.device}")
    return status


def check_record(record: Deployed, model: str) -> Deployed:
    """Return the record of what is deployed as `model`.

    Raises:
        WireError: if it names another model.
    """
    named = record.model if record.package is None else record.package.name
    if {record.model, named} != {model}:
        raise WireError(f"a deployment of {named}")
    return record


def check_header(header: PlanHeader, model: str) -> PlanHeader:
    """Return the header of a plan of `model`.

    Raises:
        WireError: if it names another model, or lacks the program of one of its devices.
    """
    if header.model != model:
        raise WireError(f"a plan of {header.model}")
    if not header.devices or header.programs.keys() != set(header.devices):
        raise WireError("a plan that has not one program for each of its devices")
    return header
