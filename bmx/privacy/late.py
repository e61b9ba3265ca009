"""Updates of clients that come late: a queue in the state, of one slot for each round of delay."""

from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.types import Array, Variables

LATE = 'late'  # collection: 'sum' [S, ...] as the parameters, 'count' [S]
Sums = tuple[Any, Array]  # (weighted sum of changes, sum of the weights)


def empty(params: Variables, rounds: int) -> Variables:
  """Returns a queue without updates.

  Args:
    params: of the model.
    rounds: S, of delay.
  """
  zeros = jax.tree.map(lambda x: jnp.zeros((rounds, *x.shape), jnp.float32), params)
  return {'sum': zeros, 'count': jnp.zeros(rounds, jnp.float32)}


def exchange(queue: Variables, number: Array, sums: Sums) -> tuple[Variables, Sums]:
  """Takes the updates that are due and puts those of this round in their slot.

  A round that the guard rejects keeps the queue: what was due in it waits another S rounds.

  Args:
    queue: see `empty`.
    number: of the round, int [].
    sums: of the late clients of this round.

  Returns:
    (the queue, the sums of the late clients of S rounds before).
  """
  slot = number % len(queue['count'])
  due = jax.tree.map(lambda x: x[slot], (queue['sum'], queue['count']))
  put = lambda x, new: x.at[slot].set(new)
  return {
    'sum': jax.tree.map(put, queue['sum'], sums[0]),
    'count': put(queue['count'], sums[1]),
  }, due
