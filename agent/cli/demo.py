"""`halomq demo`: the whole of it on this machine."""


def demo() -> None:
    """Run the demo."""
