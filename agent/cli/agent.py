"""`halomq agent`: serve as one device."""

from __future__ import annotations

import os
import signal
from functools import partial

from agent.cli.options import COORDINATOR, STANDBY, configured
from agent.config import Config


@partial(configured, device=True, more=STANDBY | COORDINATOR)
def agent(config: Config) -> None:
    """Serve as one device of the fleet until told to stop (SIGTERM).

    Settings come from flags, HALOMQ_* variables and a TOML file, in this order.

    Example: halomq agent --host broker.local --fleet workshop
    """
    from agent.adapters.logs import start_logging
    from agent.service.agent import AgentService

    start_logging(config.log_level, config.device)
    service = AgentService(config, os.environ)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.leave())
    service.run()
