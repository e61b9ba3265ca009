"""Rows of a table by their numbers."""

import jax


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
  """Looks up rows: table [V, D], ids int [...] -> [..., D]; NaN for an id below 0 or from V on."""
  return table.at[ids].get(mode='fill', wrap_negative_indices=False)
