"""Why a model says what it says: attributions, activations, probes, influence.

Functions of arrays and tasks, without a config; `bmx explain` composes them (`modes.explain`).
"""
