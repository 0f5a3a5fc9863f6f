"""Spiking neurons, codings and the spiking layer that joins them: tensors in, tensors out, time first. Plain torch, and
the reference of every faster implementation; nothing here knows a whole network or a particular kernel."""
