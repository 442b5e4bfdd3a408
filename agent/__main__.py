"""`python -m agent` is the `halomq` command."""

from agent.cli import main

main()
