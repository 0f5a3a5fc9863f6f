"""Lightning callbacks: pruning, quantization, operation counts, records, and stopping. They set the epochs of
decisions; the decisions are functions of `pruning`."""
