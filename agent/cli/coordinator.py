"""`halomq coordinator`: plan and deploy for the fleet."""

from __future__ import annotations

import os
import signal
from functools import partial

from agent.cli.options import COORDINATOR, configured
from agent.config import Config

ROLE = "coordinator"


@partial(configured, device=True, more=COORDINATOR)
def coordinator(config: Config) -> None:
    """Watch the fleet, plan each deployed model for the devices that are there, ship it.

    It may run beside an agent or anywhere else; requests need it only when devices come or go.
    Of several, one at a time leads; the others stand by to take over.
    Its id is the user name at the broker, or the device's id with "coordinator-" before it.

    Example: halomq coordinator --host broker.local --fleet workshop
    """
    from agent.adapters.logs import start_logging
    from agent.service.coordinator import CoordinatorService

    own = config.device
    name = config.broker.username or (own if own.startswith(ROLE) else f"{ROLE}-{own}")
    start_logging(config.log_level, name)
    service = CoordinatorService(name, config.data_dir / ROLE, config, os.environ)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.leave())
    service.run()
