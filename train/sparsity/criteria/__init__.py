"""Which weights of a linear layer go: one criterion a file, listed in `shearling.registry.pruning_methods`."""
