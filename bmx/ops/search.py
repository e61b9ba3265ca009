"""Exact search: the rows of a table with the largest products, in blocks."""

import jax
import jax.numpy as jnp


def search(
  queries: jax.Array, table: jax.Array, excluded: jax.Array | None, k: int, block: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the k rows with the largest products for each query, best first.

  Scores exist for one block of rows at a time. Of equal scores, the row of the lower number stands
  first.

  Args:
    queries: [B, D].
    table: [V, D].
    excluded: int [B, S], rows that a query may not have; numbers outside the table exclude nothing.
    k: rows of a query.
    block: rows whose scores exist at once.

  Returns:
    Numbers of rows int32 [B, k], -1 where fewer are left, and scores float32 [B, k], -inf there.
  """
  size, batch = len(table), len(queries)
  block = min(block, size)
  padded = jnp.pad(table, ((0, -size % block), (0, 0)))
  queries = queries.astype(jnp.float32)

  def merge(best, start):
    scores, ids = best
    rows = jax.lax.dynamic_slice_in_dim(padded, start, block).astype(jnp.float32)
    numbers = start + jnp.arange(block, dtype=jnp.int32)
    found = jnp.where(numbers[None] < size, queries @ rows.T, -jnp.inf)
    if excluded is not None:
      place = jnp.where((excluded >= start) & (excluded < start + block), excluded - start, block)
      found = found.at[jnp.arange(batch)[:, None], place].set(-jnp.inf, mode='drop')
    scores = jnp.concatenate([scores, found], 1)
    ids = jnp.concatenate([ids, jnp.broadcast_to(numbers[None], found.shape)], 1)
    scores, at = jax.lax.top_k(scores, k)
    return (scores, jnp.take_along_axis(ids, at, 1)), None

  start = jnp.full((batch, k), -jnp.inf), jnp.full((batch, k), -1, jnp.int32)
  starts = jnp.arange(0, size, block, dtype=jnp.int32)
  (scores, ids), _ = jax.lax.scan(merge, start, starts)
  return jnp.where(jnp.isfinite(scores), ids, -1), scores
