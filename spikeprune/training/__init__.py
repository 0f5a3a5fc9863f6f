"""Training: loss terms, LightningModules, optimizer, metrics, communication between processes, callbacks. It reads no
configuration; `experiment/build` passes plain values."""
