"""Kernels for packed weights in C++17, and the operators that bring them into OpenVINO and ONNX Runtime; compiled on first use."""
