"""Agreement between the processes of a run. Collective: every process must call."""

from collections.abc import Sequence

import jax
import numpy as np

MAX_NUMBERS = 256  # of one message; all processes must send equally many


def agreed(numbers: Sequence[int]) -> list[int]:
  """Returns the numbers of process 0 (its last `MAX_NUMBERS`) on every process."""
  if jax.process_count() == 1:
    return list(numbers)
  from jax.experimental import multihost_utils

  some = list(numbers)[-MAX_NUMBERS:]
  row = np.array([len(some), *some, *[0] * (MAX_NUMBERS - len(some))], np.int32)
  count, *row = multihost_utils.broadcast_one_to_all(row).tolist()
  return row[:count]


def anywhere(flag: bool) -> bool:
  """Returns whether `flag` is true on any process."""
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(np.any(multihost_utils.process_allgather(np.array([flag]))))
