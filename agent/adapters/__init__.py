"""Thin adapters: MQTT, onnxruntime, disk, pictures, systemd. Here, and in service, is all I/O."""
