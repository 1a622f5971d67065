"""Which weights are packed for the sparse kernels, and how they are put into a graph."""
