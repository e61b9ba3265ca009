"""Compression: quantization, pruning, distillation."""
