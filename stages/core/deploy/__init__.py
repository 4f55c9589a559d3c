"""Use the exported ONNX file. Nothing in this package imports PyTorch."""
