"""Exports: packages of weights and a compiled-for-anywhere program; ONNX."""
