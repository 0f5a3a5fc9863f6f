"""The teacher, the spiking student, and what a forward pass of either returns."""
