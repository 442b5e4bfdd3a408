"""Real faults on real processes, under a steady load: `make chaos`."""
