"""What repairs a pruned layer before the next one is pruned: each tool in its file, none knows another."""
