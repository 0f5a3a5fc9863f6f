"""Weights & Biases: one run for a whole pipeline, stages as groups of charts. The only package that imports wandb."""
