"""Programs outside Python: SLURM, Weights & Biases, sweeps; a run works without any of them."""
