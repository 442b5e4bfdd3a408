"""The settings of agents, coordinators and commands: TOML file, environment and flags.

Every setting is a field of a struct below, and everything else follows from it: its name in the
file (`broker.host`), its variable (`HALOMQ_BROKER_HOST`), the check of its value, the message when
the value does not fit, and its row in docs/configuration.md.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct, field

from agent.errors import ConfigError
from agent.wire.topics import NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "HALOMQ_"
# Names the file itself, so it is no setting; commands read it.
FILE_VARIABLE = "HALOMQ_CONFIG"
CREDENTIAL = "broker-password"
PASSWORD = "broker.password"  # noqa: S105 - the setting's name

NameText = Annotated[
    str,
    Meta(
        pattern=rf"^{NAME.pattern}\Z",
        examples=["a name of letters, digits, `.`, `_`, `-`, at most 64, a letter or digit first"],
    ),
]
Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=1)]
NonEmpty = Annotated[str, Meta(min_length=1, examples=["text"])]


def default_device(host: str | None = None) -> str:
    """Return the device id made from the host's name: its first label, without odd characters."""
    label = (socket.gethostname() if host is None else host).partition(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-_")[:64]
    return name or "device"


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """Return systemd's StateDirectory, else the user's data directory."""
    if state := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(state)
    home = environment.get("HOME")
    return (Path(home) if home else Path.home()) / ".local" / "share" / "halomq"


class BrokerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the broker is and how to log in."""

    host: Annotated[NonEmpty, Meta(description="name or address of the broker")] = "localhost"
    port: Annotated[
        Port | None, Meta(description="port of the broker; if unset 1883, with TLS 8883")
    ] = None
    username: Annotated[
        NonEmpty | None,
        Meta(description="user on the broker; if unset `device`, where there is a password"),
    ] = None
    password: Annotated[
        NonEmpty | None,
        Meta(description="password on the broker; only as a variable, never in a file or flag"),
    ] = None
    password_file: Annotated[
        Path | None,
        Meta(
            description="file with the password in its first line; "
            "if unset, systemd's credential `broker-password`"
        ),
    ] = None
    tls: Annotated[bool, Meta(description="connect with TLS")] = False
    ca_file: Annotated[
        Path | None,
        Meta(description="certificates that the broker's is checked against; if unset, the system"),
    ] = None
    cert_file: Annotated[Path | None, Meta(description="this device's own certificate")] = None
    key_file: Annotated[Path | None, Meta(description="the key of `broker.cert_file`")] = None
    tls_insecure: Annotated[
        bool, Meta(description="do not check the broker's name (for tests only)")
    ] = False
    keepalive_s: Annotated[
        int,
        Meta(
            ge=5,
            le=3600,
            description="seconds of silence, and half as many more, "
            "until the broker takes a device for dead",
        ),
    ] = 10

    def __repr__(self) -> str:
        """Show all but the password, so that it is in no log."""
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__)
        return f"BrokerConfig({', '.join(x for x in shown if not x.startswith('password='))})"

    @property
    def effective_port(self) -> int:
        """The port to connect to."""
        return self.port or (8883 if self.tls else 1883)

    def read_password(self) -> str | None:
        """Return the password, from its file where it has one, or None."""
        if self.password is not None or self.password_file is None:
            return self.password
        try:
            text = self.password_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            message = f"broker.password_file: cannot read {self.password_file}: {error}"
            raise ConfigError(message) from error
        if not (password := text.partition("\n")[0].rstrip("\r")):
            raise ConfigError(f"broker.password_file: {self.password_file} has an empty first line")
        return password


class RuntimeConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How onnxruntime is used."""

    providers: Annotated[
        tuple[NonEmpty, ...],
        Meta(min_length=1, description="onnxruntime's execution providers, the best first"),
    ] = ("CPUExecutionProvider",)
    threads: Annotated[
        int, Meta(ge=0, le=1024, description="threads of one inference; 0 takes a thread a core")
    ] = 0
    memory_limit_mb: Annotated[
        Count | None,
        Meta(
            description="memory that plans may use on this device; if unset, all, and half of what "
            "is free for a loss"
        ),
    ] = None
    slowness: Annotated[
        float,
        Meta(
            ge=1,
            le=1000,
            description="for emulation only: play a device that is this many times slower "
            "(docs/rig.md)",
        ),
    ] = 1.0
    pace_lock: Annotated[
        Path | None,
        Meta(
            description="for emulation only: a file that devices played on one machine lock to "
            "measure one at a time"
        ),
    ] = None


class StoreConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is kept in the data directory."""

    limit_mb: Annotated[
        int, Meta(ge=1, description="size of the store of weights; the oldest unused go first")
    ] = 4096


class RequestConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is accepted of clients."""

    deadline_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="seconds to answer in, where a request says nothing else"),
    ] = 30.0
    max_in_flight: Annotated[
        int, Meta(ge=1, le=1024, description="requests at a time; further ones are refused")
    ] = 16
    max_payload_mb: Annotated[
        int,
        Meta(ge=1, le=8, description="largest request; the broker's max_packet_size must fit"),
    ] = 8
    traces: Annotated[
        bool, Meta(description="publish what each request cost this device, once it is answered")
    ] = True


class PlanningConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a coordinator plans."""

    calibration_s: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="seconds in which an idle device may measure the layers of a model "
            "that it serves; 0 plans with nominal rates",
        ),
    ] = 10.0


class DrillConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether this device takes part in failover tests."""

    allowed: Annotated[
        bool,
        Meta(description="let `halomq drill` have this agent die, freeze or drop its link"),
    ] = False


class CoordinatorConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who plans, and who takes over."""

    standby: Annotated[
        bool,
        Meta(
            description="an agent keeps a coordinator beside it, `standby-<device>`, which takes "
            "over where the leading one is gone (docs/reliability.md)"
        ),
    ] = False
    priority: Annotated[
        int,
        Meta(
            ge=-1000,
            le=1000,
            description="of several coordinators, the one with the highest takes over first",
        ),
    ] = 0


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of one process."""

    fleet: Annotated[NameText, Meta(description="devices with the same fleet work together")] = (
        "home"
    )
    device: Annotated[
        NameText, Meta(description="this device's id and user name; if unset, its host name")
    ] = field(default_factory=default_device)
    data_dir: Annotated[
        Path,
        Meta(
            description="where weights are kept; "
            "if unset `$STATE_DIRECTORY`, else `~/.local/share/halomq`"
        ),
    ] = field(default_factory=lambda: default_data_dir(os.environ))
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="what is logged")
    ] = "info"
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    requests: RequestConfig = field(default_factory=RequestConfig)
    planning: PlanningConfig = field(default_factory=PlanningConfig)
    drill: DrillConfig = field(default_factory=DrillConfig)
    coordinator: CoordinatorConfig = field(default_factory=CoordinatorConfig)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: `name` in the file and for flags, `variable` in the environment."""

    name: str
    variable: str
    type: Any
    allowed: str
    default: str
    description: str


def settings(struct: type[Struct] = Config, path: str = "") -> tuple[Setting, ...]:
    """Return every setting, in the order of the structs."""
    found: list[Setting] = []
    hints = get_type_hints(struct, include_extras=True)
    for item in msgspec.structs.fields(struct):
        name = f"{path}{item.name}"
        annotation = hints[item.name]
        if isinstance(annotation, type) and issubclass(annotation, Struct):
            found += settings(annotation, f"{name}.")
            continue
        variable = PREFIX + name.replace(".", "_").upper()
        description = next(
            (x.description for x in get_args(annotation) if getattr(x, "description", None)), ""
        )
        text = _allowed(annotation)
        found.append(Setting(name, variable, annotation, text, _default(item), description))
    return tuple(found)


def load_config(
    file: Path | None,
    environment: Mapping[str, str],
    overrides: Mapping[str, object],
) -> Config:
    """Return the settings: flags win over the environment, it over the file, it over defaults.

    `overrides` has dotted names ("broker.host"); None stands for a flag that was not given.
    """
    known = {setting.name: setting for setting in settings()}
    values: dict[str, object] = {}
    if file is not None:
        values |= _from_file(file, known)
    values |= _from_environment(environment, known)
    for name, value in overrides.items():
        if value is None:
            continue
        if name not in known or name == PASSWORD:
            raise ConfigError(f"{name}: no such setting as a flag")
        values[name] = _convert(known[name], value, "flag", strict=False)
    values.setdefault("data_dir", default_data_dir(environment))
    credential = Path(environment.get("CREDENTIALS_DIRECTORY", "")) / CREDENTIAL
    # Empty: an operator whose broker wants no password, but whose unit loads a credential.
    if (
        not {"broker.password_file", PASSWORD} & values.keys()
        and "CREDENTIALS_DIRECTORY" in environment
        and credential.is_file()
        and credential.stat().st_size > 0
    ):
        values["broker.password_file"] = credential
    return _build(values)


def _build(values: Mapping[str, object]) -> Config:
    """Return the structs of checked values, if they make sense together."""
    sections: dict[str, dict[str, Any]] = {
        name: {}
        for name in ("broker", "runtime", "store", "requests", "planning", "drill", "coordinator")
    }
    top: dict[str, Any] = {}
    for name, value in values.items():
        section, dot, key = name.partition(".")
        if dot:
            sections[section][key] = value
        else:
            top[name] = value
    broker = BrokerConfig(**sections["broker"])
    for name in ("ca_file", "cert_file", "key_file"):
        if getattr(broker, name) is not None and not broker.tls:
            raise ConfigError(f"broker.{name} is set, but broker.tls is not true")
    if (broker.cert_file is None) != (broker.key_file is None):
        raise ConfigError("broker.cert_file and broker.key_file: set both or neither")
    config = Config(
        **top,
        broker=broker,
        runtime=RuntimeConfig(**sections["runtime"]),
        store=StoreConfig(**sections["store"]),
        requests=RequestConfig(**sections["requests"]),
        planning=PlanningConfig(**sections["planning"]),
        drill=DrillConfig(**sections["drill"]),
        coordinator=CoordinatorConfig(**sections["coordinator"]),
    )
    has_password = broker.password is not None or broker.password_file is not None
    if has_password and broker.username is None:
        named = msgspec.structs.replace(broker, username=config.device)
        return msgspec.structs.replace(config, broker=named)
    return config


def _from_file(file: Path, known: Mapping[str, Setting]) -> dict[str, object]:
    """Return the checked values of a TOML file; its relative paths start at its own directory."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    sections = {name.partition(".")[0] for name in known if "." in name}
    flat: dict[str, object] = {}
    for key, value in tables.items():
        if key in sections and isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    values: dict[str, object] = {}
    for name, value in flat.items():
        if name == PASSWORD:
            raise ConfigError(
                f"{file}: broker.password: a password does not belong here; use "
                f"broker.password_file or the variable {known[PASSWORD].variable}"
            )
        if name not in known:
            near = ", ".join(sorted(known.keys() - {PASSWORD}))
            raise ConfigError(f"{file}: {name}: no such setting; there are {near}")
        checked = _convert(known[name], value, str(file), strict=True)
        values[name] = file.parent / checked if isinstance(checked, Path) else checked
    return values


def _from_environment(
    environment: Mapping[str, str], known: Mapping[str, Setting]
) -> dict[str, object]:
    """Return the checked values of the variables; one that is misspelt is an error."""
    variables = {setting.variable: setting for setting in known.values()}
    values: dict[str, object] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        if variable not in variables:
            there = ", ".join(sorted(variables))
            raise ConfigError(f"variable {variable}: no such setting; there are {there}")
        setting = variables[variable]
        source = f"variable {variable}"
        values[setting.name] = _convert(setting, text, source, strict=False)
    return values


def _convert(setting: Setting, value: object, source: str, *, strict: bool) -> Any:
    """Return `value` as the setting's type; text may stand for numbers unless `strict`."""
    if not strict and isinstance(value, str) and "list of" in setting.allowed:
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return msgspec.convert(value, setting.type, strict=strict, dec_hook=_decode_path)
    except msgspec.ValidationError:
        shown = "" if setting.name == PASSWORD else f", not {value!r}"
        message = f"{source}: {setting.name} must be {setting.allowed}{shown}"
        raise ConfigError(message) from None


def _decode_path(kind: type, value: object) -> Path:
    """Make a path, the one type here that msgspec does not know."""
    if kind is Path and isinstance(value, (str, Path)) and str(value):
        # os.path's way leaves a "~" alone where there is no home, as in some containers.
        return Path(os.path.expanduser(value))  # noqa: PTH111
    raise TypeError


def _allowed(annotation: Any) -> str:
    """Say in words what values an annotation allows."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for meta in arguments[1:]:
            if meta.examples:
                return str(meta.examples[0])
        return " ".join(
            [_allowed(arguments[0]), *(_bounds(meta) for meta in arguments[1:])]
        ).strip()
    if origin is Literal:
        return "one of " + ", ".join(f'"{value}"' for value in arguments)
    if origin is tuple:
        return f"a list of {_allowed(arguments[0])} (in a variable, with commas)"
    if type(None) in arguments:
        return _allowed(next(value for value in arguments if value is not type(None)))
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(annotation, "a path")


def _bounds(meta: Meta) -> str:
    """Say in words what limits a value has."""
    if meta.ge is not None and meta.le is not None:
        return f"from {meta.ge} to {meta.le}"
    if meta.gt is not None:
        return f"above {meta.gt}, at most {meta.le}"
    if meta.ge is not None:
        return f"of at least {meta.ge}"
    return ""


def _default(item: msgspec.structs.FieldInfo) -> str:
    """Say in words what an unset setting is."""
    if item.default is None or item.default is msgspec.NODEFAULT:
        return ""
    if isinstance(item.default, bool):
        return str(item.default).lower()
    return ", ".join(item.default) if isinstance(item.default, tuple) else str(item.default)
