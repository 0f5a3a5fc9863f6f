"""Runs: the pipeline of stages, the run directory, checkpoints, evaluation. No network, no loss."""
