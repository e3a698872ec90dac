"""A model to constants, to an ONNX graph, to a probe. Imports `data` and what lies below."""
