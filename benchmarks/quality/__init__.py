"""The benchmark of quality: what each way of pruning and training costs in accuracy, and in language."""
