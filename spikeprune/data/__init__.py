"""Texts and labels from files, the hub or a generator, as batches of tokens; no model and no stage."""
