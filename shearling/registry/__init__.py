"""What there may be more of: one table each for pruning methods, search algorithms, formats, numbers and runtimes."""
