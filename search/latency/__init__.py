"""The time of a candidate on the target: layers are measured once, candidates are predicted."""
