"""HaloMQ: one CNN over several small devices and one MQTT broker."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("halomq")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
