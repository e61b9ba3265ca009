"""Host checks of labels that devices accept: a gather clamps or wraps, a mask is finite."""

import numpy as np

from bmx.core.errors import InputError


def check_ids(
  name: str,
  ids: np.ndarray,
  bound: int,
  numbers: np.ndarray,
  weights: np.ndarray | None = None,
) -> None:
  """Raises InputError naming the first example with an id outside 0 to `bound` - 1.

  Args:
    name: of the array.
    ids: int [n, ...].
    bound: number of classes, or size of the vocabulary.
    numbers: of the examples, int [n].
    weights: of the shape of `ids`; ids of weight 0 are not read. None: all are.
  """
  bad = (ids < 0) | (ids >= bound)
  if weights is not None and weights.shape == ids.shape:
    bad &= weights > 0
  if bad.any():
    row, *place = np.argwhere(bad)[0]
    raise InputError(
      f'{name}={ids[(row, *place)]} of example {numbers[row]}: expected 0 <= {name} < {bound}'
    )
