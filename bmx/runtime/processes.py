"""What the processes of a run must know alike: everybody calls, everybody gets the same answer."""

from collections.abc import Sequence

import jax
import numpy as np

MOST = 256  # numbers that travel at once; all processes must send equally many


def agreed(numbers: Sequence[int]) -> list[int]:
  """Process 0's numbers (its last `MOST`), on every process."""
  if jax.process_count() == 1:
    return list(numbers)
  from jax.experimental import multihost_utils

  some = list(numbers)[-MOST:]
  row = np.array([len(some), *some, *[0] * (MOST - len(some))], np.int32)
  count, *row = multihost_utils.broadcast_one_to_all(row).tolist()
  return row[:count]


def anywhere(flag: bool) -> bool:
  """Whether it is so on any process."""
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(np.any(multihost_utils.process_allgather(np.array([flag]))))
