"""What there may be more of, one table each: pruning methods and patterns, search algorithms, formats, runtimes."""
