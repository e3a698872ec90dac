"""Sessions on numpy arrays, which need no torch: the CPU kernels, onnxruntime and TensorRT."""
