"""Configuration and parts -> objects: networks, modules, callbacks, trainers."""
