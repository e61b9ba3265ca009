"""Rows of a table by their numbers."""

import jax


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
  """table [V, D], ids int [...] -> [..., D]; NaN where an id is negative or at least V."""
  return table.at[ids].get(mode='fill', wrap_negative_indices=False)
