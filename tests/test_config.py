"""Settings: where they come from, what is refused and how, and that the documents are true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from agent.config import BrokerConfig, Config, default_device, load_config, settings
from agent.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults() -> None:
    config = load_config(None, {"HOME": "/home/pi"}, {})
    assert config.fleet == "home"
    assert config.data_dir == Path("/home/pi/.local/share/halomq")
    assert config.broker == BrokerConfig()
    assert config.broker.username is None
    assert config.broker.read_password() is None
    assert config == load_config(None, {"HOME": "/home/pi"}, {"fleet": None})
    assert config.device == default_device()


def test_flags_win_over_variables_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(
        tmp_path / "halomq.toml",
        'fleet = "file"\ndevice = "file"\nlog_level = "debug"\n'
        '[broker]\nhost = "file"\nport = 1000\n[requests]\ndeadline_s = 5',
    )
    environment = {
        "HALOMQ_DEVICE": "variable",
        "HALOMQ_BROKER_HOST": "variable",
        "HALOMQ_BROKER_PORT": "2000",
        "PATH": "/bin",
    }
    flags = {"broker.host": "flag", "broker.port": None, "runtime.threads": 3}
    config = load_config(file, environment, flags)
    assert (config.fleet, config.device, config.log_level) == ("file", "variable", "debug")
    assert (config.broker.host, config.broker.port) == ("flag", 2000)
    assert config.runtime.threads == 3
    assert config.requests.deadline_s == 5.0
    assert config.store.limit_mb == 4096


def test_every_setting_can_be_a_variable(tmp_path: Path) -> None:
    texts = {
        "a path": str(tmp_path),
        "true or false": "true",
        "text": "text",
        'one of "debug", "info", "warning", "error"': "error",
    }
    environment = {}
    for setting in settings():
        numeric = "number" in setting.allowed
        text = "false" if setting.default == "true" else texts.get(setting.allowed, "name")
        environment[setting.variable] = "7" if numeric else text
    config = load_config(None, environment, {})
    assert config.broker.tls is True
    assert config.broker.read_password() == "text"
    assert config.runtime.providers == ("name",)
    assert config.requests.deadline_s == 7.0
    # None was forgotten: each differs from the default.
    for setting in settings():
        value: object = config
        default: object = Config()
        for part in setting.name.split("."):
            value, default = getattr(value, part), getattr(default, part)
        assert value != default, setting.name


def test_lists_have_commas_in_variables() -> None:
    environment = {"HALOMQ_RUNTIME_PROVIDERS": "CUDAExecutionProvider, CPUExecutionProvider"}
    config = load_config(None, environment, {})
    assert config.runtime.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")


def test_state_directory_of_systemd(tmp_path: Path) -> None:
    environment = {"STATE_DIRECTORY": f"{tmp_path}/a:{tmp_path}/b", "HOME": "/nowhere"}
    assert load_config(None, environment, {}).data_dir == tmp_path / "a"
    assert load_config(None, {**environment, "HALOMQ_DATA_DIR": "/x"}, {}).data_dir == Path("/x")


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    text = 'data_dir = "data"\n[broker]\ntls = true\nca_file = "/etc/ca.crt"'
    config = load_config(write(tmp_path / "halomq.toml", text), {}, {})
    assert config.data_dir == tmp_path / "data"
    assert config.broker.ca_file == Path("/etc/ca.crt")


@pytest.mark.parametrize(
    ("host", "device"),
    [
        ("pi-1", "pi-1"),
        ("pi-1.example.org", "pi-1"),
        ("-böse maschine_", "b-se-maschine"),
        ("", "device"),
        ("x" * 70, "x" * 64),
    ],
)
def test_device_from_host_name(host: str, device: str) -> None:
    assert default_device(host) == device
    assert load_config(None, {}, {"device": device}).device == device


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('flet = "x"', ["flet", "no such setting", "fleet"]),
        ('[broker]\nhots = "x"', ["broker.hots", "no such setting", "broker.host"]),
        ("broker = 3", ["broker", "no such setting"]),
        ('[broker]\nport = "1883"', ["broker.port", "a whole number from 1 to 65535", "'1883'"]),
        ("[broker]\nport = 0", ["broker.port", "from 1 to 65535"]),
        ("[broker]\nkeepalive_s = 1", ["broker.keepalive_s", "from 5 to 3600"]),
        ('[broker]\npassword = "s3cret"', ["HALOMQ_BROKER_PASSWORD", "broker.password_file"]),
        ('fleet = "a/b"', ["fleet", "letters, digits"]),
        ('device = "a\\n"', ["device", "letters, digits"]),
        ('device = ""', ["device", "letters, digits"]),
        ('log_level = "loud"', ["log_level", '"debug"', "loud"]),
        ("[runtime]\nproviders = []", ["runtime.providers", "a list of text"]),
        ("[requests]\ndeadline_s = nan", ["requests.deadline_s", "above 0, at most 3600"]),
        ("fleet = \n", ["not TOML", "line 1"]),
        ("[broker]\nca_file = 3", ["broker.ca_file", "a path"]),
        ('[broker]\nca_file = "x"', ["broker.ca_file", "broker.tls"]),
        ('[broker]\ntls = true\ncert_file = "x"', ["broker.cert_file", "broker.key_file"]),
    ],
)
def test_wrong_files_are_refused_with_what_is_allowed(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    file = write(tmp_path / "halomq.toml", text)
    with pytest.raises(ConfigError) as refused:
        load_config(file, {}, {})
    message = str(refused.value)
    assert all(word in message for word in words), message
    if "is set" not in message and "set both" not in message:
        assert str(file) in message
    assert "s3cret" not in message


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml", {}, {})
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path, {}, {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(binary, {}, {})


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("HALOMQ_BROKR_HOST", "x", ["no such setting", "HALOMQ_BROKER_HOST"]),
        ("HALOMQ_RUNTIME_THREADS", "many", ["runtime.threads", "a whole number from 0", "'many'"]),
        ("HALOMQ_BROKER_TLS", "maybe", ["broker.tls", "true or false"]),
        ("HALOMQ_BROKER_PASSWORD", "", ["broker.password", "text"]),
    ],
)
def test_wrong_variables_are_refused(variable: str, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(None, {variable: text}, {})
    assert all(word in str(refused.value) for word in [variable, *words])


def test_the_file_variable_is_no_setting() -> None:
    assert load_config(None, {"HALOMQ_CONFIG": "/etc/halomq/halomq.toml"}, {})


@pytest.mark.parametrize("name", ["broker.hots", "broker", "broker.password"])
def test_wrong_flags_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: no such setting"):
        load_config(None, {}, {name: "x"})


def test_flags_may_be_text() -> None:
    assert load_config(None, {}, {"broker.port": "77"}).broker.port == 77
    with pytest.raises(ConfigError, match=r"flag: broker\.port must be a whole number"):
        load_config(None, {}, {"broker.port": "x"})


def test_ports() -> None:
    assert BrokerConfig().effective_port == 1883
    assert BrokerConfig(tls=True).effective_port == 8883
    assert BrokerConfig(tls=True, port=5).effective_port == 5


def test_password_from_variable_file_and_credential(tmp_path: Path) -> None:
    credential = write(tmp_path / "broker-password", "from-systemd\n")
    file = write(tmp_path / "password", "from-file\nsecond line\n")
    systemd = {"CREDENTIALS_DIRECTORY": str(tmp_path)}

    config = load_config(None, systemd, {"device": "pi-7"})
    assert config.broker.password_file == credential
    assert config.broker.read_password() == "from-systemd"
    assert config.broker.username == "pi-7"

    config = load_config(None, systemd, {"broker.password_file": file, "broker.username": "u"})
    assert config.broker.read_password() == "from-file"
    assert config.broker.username == "u"

    config = load_config(None, {**systemd, "HALOMQ_BROKER_PASSWORD": "from-variable"}, {})
    assert config.broker.read_password() == "from-variable"
    assert "from-variable" not in repr(config)

    credential.write_text("", encoding="utf-8")
    config = load_config(None, systemd, {})
    assert config.broker.read_password() is None
    assert config.broker.username is None


def test_password_files_that_are_no_use(tmp_path: Path) -> None:
    missing = BrokerConfig(password_file=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"broker\.password_file: cannot read .*none"):
        missing.read_password()
    empty = BrokerConfig(password_file=write(tmp_path / "empty", "\n"))
    with pytest.raises(ConfigError, match="empty first line"):
        empty.read_password()


def test_the_documented_table_is_the_code() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = [
        f"| `{setting.name}` | `{setting.variable}` | {setting.allowed} | "
        f"{setting.default and f'`{setting.default}`'} | {setting.description} |"
        for setting in settings()
    ]
    assert [line for line in document.splitlines() if line.startswith("| `")] == rows
    assert all(setting.description for setting in settings())


def test_the_example_file_holds(tmp_path: Path) -> None:
    text = (ROOT / "systemd" / "halomq.toml").read_text(encoding="utf-8")
    assert load_config(write(tmp_path / "as-it-is.toml", text), {}, {"device": "x"}) == load_config(
        None, {}, {"device": "x"}
    )
    bare = re.sub(r"^#(?=[a-z_]+ =)", "", text, flags=re.MULTILINE)
    load_config(write(tmp_path / "all-set.toml", bare), {}, {})
    # What has a default is shown with it, and every section of the code is there.
    defaults = {setting.name: setting.default for setting in settings() if setting.default}
    shown = {
        f"{section}.{name}": value
        for section, table in tomllib.loads(bare).items()
        if isinstance(table, dict)
        for name, value in table.items()
    }
    examples = {"broker.tls", "coordinator.standby"}
    for name in shown.keys() & defaults.keys() - examples:
        value = shown[name]
        text = ", ".join(value) if isinstance(value, list) else str(value)
        assert defaults[name] == (text.lower() if isinstance(value, bool) else text), name
    sections = {setting.name.partition(".")[0] for setting in settings() if "." in setting.name}
    assert sections == {name.partition(".")[0] for name in shown}
