"""SpikePrune: spiking language models made small in space and in time."""

__version__ = "0.1.0"
