"""Generation past the positions of a model: its rows forget their oldest tokens.

A row that has filled all positions keeps its newest tokens, from position 0 on, and the cache is
filled anew. B rows, P slots of a padded prompt.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bmx.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Slide:
  """The tokens that rows keep when their positions are used up.

  Attributes:
    limit: positions of the model.
    keep: tokens that a row keeps, the newest; its own begin of text stays before them and counts.
  """

  limit: int
  keep: int

  @classmethod
  def of(cls, share: float, limit: int, begin: Sequence[int] = ()) -> 'Slide | None':
    """Returns the slide for a share of the positions; None if texts end with the last one.

    Args:
      share: of the positions, `generate.slide`; 0 ends texts.
      limit: positions of the model; 0: unlimited.
      begin: ids that begin every text.

    Raises:
      InputError: the share is not in [0, 1), or keeps no token besides `begin`.
    """
    if not 0 <= share < 1:
      raise InputError(f'generate.slide={share}: expected 0 <= slide < 1')
    if not share or not limit:
      return None
    slide = cls(limit, round(share * limit))
    if not len(begin) < slide.keep < limit:
      raise InputError(
        f'generate.slide={share}: expected a share that keeps from {len(begin) + 1} to {limit - 1} '
        f'of the max_seq_len={limit} positions; 0 ends texts with the last position'
      )
    return slide


  def newest(self, row: Sequence[int], begin: Sequence[int]) -> list[int]:
    """Returns what is kept of a row: `begin`, where it begins with it, and its newest tokens."""
    row, begin = list(row), list(begin)
    if len(row) <= self.keep:
      return row
    head = begin if row[: len(begin)] == begin else []
    return head + row[len(row) - self.keep + len(head) :]


class RowTokens:
  """The tokens that the cache of each row holds.

  Args:
    rows: ids of each row's prompt.
    slide: how many are kept.
    begin: ids that stay where a row begins with them.
  """

  def __init__(self, rows: Sequence[Sequence[int]], slide: Slide, begin: Sequence[int]):
    self.rows = [list(row) for row in rows]
    self.slide, self.begin = slide, list(begin)

  def room(self, live: np.ndarray) -> int:
    """Returns how many tokens fit until a live row, bool [B], is full."""
    lengths = [len(row) for row, alive in zip(self.rows, live, strict=True) if alive]
    return self.slide.limit - max(lengths, default=0)

  def add(self, new: np.ndarray) -> None:
    """Appends new ids, int [B, n]; -1 marks the end of a row."""
    for row, ids in zip(self.rows, new.tolist(), strict=True):
      row += [i for i in ids if i >= 0]

  def forget(self, live: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
    """Cuts the rows that are full, and those that are not live.

    Returns:
      ('tokens' int32 [B, P], padded on the left, and 'first' int32 [B], as `Decoder.prefill` reads
      them; the tokens that the cache must hold). P is `keep`, or `limit` if a row holds more.
    """
    keep, limit = self.slide.keep, self.slide.limit
    for n, alive in enumerate(live):
      if len(self.rows[n]) >= limit or not alive:
        self.rows[n] = self.slide.newest(self.rows[n], self.begin)
    slots = keep if max(map(len, self.rows)) <= keep else limit
    tokens = np.zeros((len(self.rows), slots), np.int32)
    for n, row in enumerate(self.rows):
      tokens[n, slots - len(row) :] = row
    first = np.array([slots - len(row) for row in self.rows], np.int32)
    return {'tokens': tokens, 'first': first}, slots + limit - keep
