"""Spiking neurons, codings and the spiking site that joins them: tensors in, tensors out, time first."""
