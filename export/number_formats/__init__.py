"""One module for each number format of exported weights, and how OpenVINO and ONNX store it."""
