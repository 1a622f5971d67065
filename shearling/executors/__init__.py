"""Where work is done that one process alone would take long for: here, in processes, or on a Ray cluster."""
