"""Host checks of labels that no device refuses: a gather clamps or wraps, a mask is finite."""

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


def check_alignable(
  frames: np.ndarray, labels: np.ndarray, lengths: np.ndarray, numbers: np.ndarray
) -> None:
  """Raises InputError naming the first example whose label has no CTC alignment.

  A label needs a frame for each of its symbols, and one for the blank between two equal ones
  (Graves et al. 2006, section 3.1). Losses such as `optax.ctc_loss` are large and finite
  otherwise.

  Args:
    frames: of each example, int [n].
    labels: ids, int [n, S].
    lengths: symbols of each label, int [n].
    numbers: of the examples, int [n].
  """
  inside = np.arange(1, labels.shape[1]) < lengths[:, None]
  needed = lengths + ((labels[:, 1:] == labels[:, :-1]) & inside).sum(1)
  short = np.flatnonzero(frames < needed)
  if len(short):
    n = short[0]
    raise InputError(
      f'frames={frames[n]} of example {numbers[n]}: expected at least {needed[n]} for its label of '
      f'{lengths[n]} symbols; drop the example, or use a smaller stride'
    )
