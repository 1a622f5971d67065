"""Stage search."""
