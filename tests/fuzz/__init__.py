"""A fuzzer of the wire: `python -m tests.fuzz --seconds 600`, and a short form among the tests."""
