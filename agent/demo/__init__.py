"""The demo: one CNN over several agent processes on one broker, with one of them killed."""
