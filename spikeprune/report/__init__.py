"""What a run shows: the closing table of the terminal and the figures, all made from `summary.json` alone."""
