"""One module for each runtime, and what can be run with them."""
