"""The demo of pruning: SmolLM2, half of its weights zero, beside the baselines that a reader would think of."""
