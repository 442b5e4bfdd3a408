"""Failover tests: load with its accounting, and drills on a user's own fleet."""
