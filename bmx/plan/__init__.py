"""Plans: a training step compiled for other devices, with its memory and communication."""
