"""A deterministic simulation of whole fleets; see docs/reliability.md."""
