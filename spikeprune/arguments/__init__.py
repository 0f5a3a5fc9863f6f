"""What the command line takes: commands, options, examples. What a command does is in `cli.py`."""
