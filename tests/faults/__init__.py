"""Campaigns of injected faults, each repeatable by its seed: `make test-faults`; not tests themselves."""
