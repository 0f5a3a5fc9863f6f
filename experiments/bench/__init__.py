"""The benchmark: our simulation, evaluation and training step beside those of others, in one process and one run."""
