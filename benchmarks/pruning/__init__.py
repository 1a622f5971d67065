"""The benchmark of pruning: what each pruner costs in language before any training, in time and in memory."""
