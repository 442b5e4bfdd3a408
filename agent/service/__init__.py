"""Services: each wires a sans-IO core to MQTT, onnxruntime, the disk and systemd."""
