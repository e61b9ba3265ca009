"""Tasks: losses, predictions and metrics over models."""
