"""Agreement between the processes of a run. Collective: every process must call."""

import json
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from bmx.core.errors import InputError
from bmx.runtime.facts import differences

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


def check_same(facts: Mapping[str, str]) -> None:
  """Compares facts (word -> value) of all processes.

  Raises InputError on every process if they differ: names the words, the values and the processes.
  """
  lines = differences({i: json.loads(text) for i, text in enumerate(gathered(json.dumps(facts)))})
  if lines:
    raise InputError(
      'the processes differ: expected the same data on all:\n  ' + '\n  '.join(lines)
    )


def gathered(text: str) -> list[str]:
  """Returns the texts of all processes, in their order."""
  if jax.process_count() == 1:
    return [text]
  from jax.experimental import multihost_utils

  data = text.encode()
  sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
  row = np.zeros(int(sizes.max()), np.uint8)
  row[: len(data)] = np.frombuffer(data, np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(row)).reshape(len(sizes), -1)
  return [bytes(r[:n]).decode() for r, n in zip(rows, sizes, strict=True)]
