"""Weights from other places: runs of bmx and folders of Hugging Face, in and out."""
