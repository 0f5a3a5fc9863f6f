"""Sweeps in W&B's file format: checked before anything starts, then run by W&B's agents or here without a server."""
