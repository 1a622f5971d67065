"""A decoder written as the ONNX graph that ONNX Runtime's own fused operators make of it."""
