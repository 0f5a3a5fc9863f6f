"""The teacher and the spiking student as torch modules: architecture, weights and files; no training and no data."""
