"""When: Lightning callbacks that prune, shorten and count between epochs. Each asks a criterion and a budget."""
