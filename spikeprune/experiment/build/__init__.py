"""Configuration and context -> objects: networks, modules, callbacks, trainers."""
