"""Options that several commands share, and how their values become a configuration."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from agent.errors import HaloMQError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.wire.manifest import Halos, Objective, Strategy

Exact = Annotated[
    bool,
    typer.Option("--exact", help="Keep every bit of one device's answer, even if slower."),
]
Timeline = Annotated[
    Path | None,
    typer.Option(help="Draw what each device does when: a .svg, .html or .json (Chrome trace)."),
]
StrategyName = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        help="How to split: single, modnn, deepthings, halp, dpfp-paper or dpfp. "
        "[default: the manifest's, or dpfp]",
        show_default=False,
    ),
]
ObjectiveName = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="Plan for latency, or for throughput with several requests in flight. "
        "[default: the manifest's, or latency]",
        show_default=False,
    ),
]
HalosName = Annotated[
    str | None,
    typer.Option(
        "--halos",
        help="How halos travel where links are slow: lossless (packed), plain (as they are), or "
        "half (packed as float16, which rounds). [default: the manifest's, or lossless]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

_CONNECTION: dict[str, tuple[Any, str, str]] = {
    "config_file": (Path | None, "--config", "TOML file with settings (docs/configuration.md)."),
    "broker.host": (str | None, "--host", "Broker's name or address."),
    "broker.port": (int | None, "--port", "Broker's port."),
    "broker.username": (str | None, "--username", "User name at the broker."),
    "broker.password_file": (Path | None, "--password-file", "File with the user's password."),
    "broker.tls": (bool | None, "--tls/--no-tls", "Connect with TLS."),
    "broker.ca_file": (Path | None, "--ca-file", "CA certificates that sign the broker's."),
    "fleet": (str | None, "--fleet", "Name that the devices of one fleet share."),
}
_DEVICE: dict[str, tuple[Any, str, str]] = {
    "device": (str | None, "--device", "This device's id; its user name at the broker."),
    "data_dir": (Path | None, "--data-dir", "Where weights are kept."),
    "log_level": (str | None, "--log-level", "debug, info, warning or error."),
    "runtime.threads": (int | None, "--threads", "Threads for onnxruntime; 0: all cores."),
    "runtime.memory_limit_mb": (int | None, "--memory-limit-mb", "Memory a plan may use here."),
}
STANDBY: dict[str, tuple[Any, str, str]] = {
    "coordinator.standby": (
        bool | None,
        "--standby/--no-standby",
        "Keep a coordinator here too, which takes over where the leading one is gone.",
    ),
}
COORDINATOR: dict[str, tuple[Any, str, str]] = {
    "coordinator.priority": (int | None, "--priority", "The highest one takes over first."),
}


def configured(
    command: Callable[..., None],
    *,
    device: bool = False,
    more: Mapping[str, tuple[Any, str, str]] = MappingProxyType({}),
) -> Callable[..., None]:
    """Give a command the options of a connection, and `more`; it gets the resulting `config`."""
    options = _CONNECTION | (_DEVICE if device else {}) | dict(more)
    names = {setting: setting.replace(".", "_") for setting in options}

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        from agent.config import FILE_VARIABLE, load_config

        given = {setting: arguments.pop(name) for setting, name in names.items()}
        named = os.environ.get(FILE_VARIABLE)
        file = given.pop("config_file") or (Path(named) if named else None)
        command(config=load_config(file, os.environ, given), **arguments)

    signature = inspect.signature(command, eval_str=True)
    own = [p for name, p in signature.parameters.items() if name != "config"]
    shared = [
        inspect.Parameter(
            names[setting],
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind, typer.Option(flag, help=text)],
        )
        for setting, (kind, flag, text) in options.items()
    ]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*keyword, *shared]
    )
    wrapper.__annotations__ = {p.name: p.annotation for p in (*keyword, *shared)}
    return wrapper


def make_strategy(name: str) -> Strategy:
    """Return the strategy that the user named.

    Raises:
        ConfigError: if there is none of that name.
    """
    from agent.wire.manifest import Strategy

    return cast("Strategy", _one_of("--strategy", name, get_args(Strategy)))


def make_objective(name: str) -> Objective:
    """Return the objective that the user named.

    Raises:
        ConfigError: if there is none of that name.
    """
    from agent.wire.manifest import Objective

    return cast("Objective", _one_of("--objective", name, get_args(Objective)))


def make_halos(name: str) -> Halos:
    """Return how halos may travel, as the user named it.

    Raises:
        ConfigError: if there is no such way.
    """
    from agent.wire.manifest import Halos

    return cast("Halos", _one_of("--halos", name, get_args(Halos)))


def _one_of(option: str, name: str, names: Sequence[str]) -> str:
    from agent.errors import ConfigError

    if name not in names:
        raise ConfigError(f"{option} {name}: give one of {', '.join(names)}")
    return name


def print_json(value: object) -> None:
    """Print one JSON object on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def timeline_ending(path: Path) -> str:
    """Return the ending of the file that a timeline is to be written to, in lower case.

    Raises:
        ConfigError: if it names no format.
    """
    from agent.errors import ConfigError
    from agent.timeline import ENDINGS

    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(f"--timeline {path}: give a file that ends in {', '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--timeline {path}: there is no directory {path.parent}")
    return ending


def write_file(path: Path, text: str) -> None:
    """Write a file that the user named.

    Raises:
        HaloMQError: if it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HaloMQError(f"cannot write {path}: {error.strerror}") from error


def read_file(path: Path) -> bytes:
    """Read a file that the user named.

    Raises:
        HaloMQError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise HaloMQError(f"cannot read {path}: {error.strerror}") from error
