"""Is it slower than it was? A verdict that says `inconclusive` rather than guess."""
