"""Values, protocols and small functions that every other package may import."""
