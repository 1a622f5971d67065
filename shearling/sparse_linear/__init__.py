"""Weights packed as bitmask and nonzeros, and the library of kernels that multiplies them."""
