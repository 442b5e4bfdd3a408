"""HaloMQ: one CNN over several small devices and one MQTT broker."""

__version__ = "0.1.0"
