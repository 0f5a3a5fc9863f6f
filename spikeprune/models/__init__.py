"""The teacher and the spiking student as torch modules: architecture, weights and files, but no training and no data."""
