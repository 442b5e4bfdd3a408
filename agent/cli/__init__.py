"""The `halomq` command. One module a command; each imports what it needs when it is run."""

from __future__ import annotations

import os
import sys

import typer

from agent.cli import agent as agent_command
from agent.cli import bench, coordinator, demo, deploy, devices, drill, infer, plan, verify
from agent.errors import HaloMQError, reason_of

app = typer.Typer(
    name="halomq",
    help="One CNN over several small devices and one MQTT broker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("agent")(agent_command.agent)
app.command("coordinator")(coordinator.coordinator)
app.command("deploy")(deploy.deploy)
app.command("remove")(deploy.remove)
app.command("devices")(devices.devices)
app.command("infer")(infer.infer)
app.command("plan")(plan.plan)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("drill")(drill.drill)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line; an error becomes one line on stderr and the exit status."""
    try:
        app()
    except HaloMQError as error:
        sys.stderr.write(f"halomq: {error}\n")
        raise SystemExit(error.exit_code) from None
    except MemoryError as error:
        sys.stderr.write(f"halomq: {reason_of(error)}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        sys.stderr.write(f"halomq: this needs {error.name}: pip install 'halomq[demo]'\n")
        raise SystemExit(2) from None
    except OSError as error:
        sys.stderr.write(f"halomq: {error.filename or 'the system'}: {error.strerror}\n")
        raise SystemExit(1) from None
