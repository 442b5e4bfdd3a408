"""The errors that HaloMQ raises for a person to read; each message says what to do."""


class HaloMQError(Exception):
    """Base of every error whose text is meant for a user; `exit_code` is the command's status."""

    exit_code = 1


class ModelError(HaloMQError):
    """A model that cannot be read or served; names the node where there is one."""

    exit_code = 3


class InputError(HaloMQError):
    """An image or tensor that does not fit the model."""

    exit_code = 4


class WireError(HaloMQError):
    """A message that is malformed, truncated or does not match the receiver's plan."""


class BrokerError(HaloMQError):
    """The broker cannot be reached, or refuses this user or message."""

    exit_code = 5


class ConfigError(HaloMQError):
    """A configuration file, variable or flag that does not make sense."""

    exit_code = 2


class StoreError(HaloMQError):
    """The data directory is full, unreadable or holds damaged blobs."""

    exit_code = 6


class FleetError(HaloMQError):
    """The fleet did not do what was asked: no coordinator, no devices, no answer in time."""

    exit_code = 7


def reason_of(error: Exception) -> str:
    """Return an error as one sentence for a log line or an answer."""
    if isinstance(error, HaloMQError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory; give the device a smaller part with runtime.memory_limit_mb"
    return f"internal error, {type(error).__name__}: {error}".replace("\n", " ")
