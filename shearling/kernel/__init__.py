"""The sparse kernels: packed form, C++ sources, compiled libraries, and the operators of each runtime."""
