"""One module for each format that an export writes."""
