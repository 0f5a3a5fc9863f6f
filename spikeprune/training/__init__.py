"""Training: loss terms, LightningModules, optimizer, metrics, communication between processes, callbacks. It is given
values; `experiment/build` reads the configuration."""
