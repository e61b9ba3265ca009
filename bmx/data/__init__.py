"""Data sets: examples from arrays, files, tables, images and text, and their batches."""
