"""The field rig: a fleet of emulated devices on one machine; `python -m benchmarks.rig`."""
