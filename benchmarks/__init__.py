"""Benchmarks: one module a claim of the README, each `python -m benchmarks.NAME --json`."""
