"""`search.html`: a search to look at, while it runs and afterwards."""
