"""Generation past the positions of a model: its rows forget their oldest tokens.

A row that has filled all positions keeps its newest tokens, from position 0 on, and its cache is
filled anew.
"""

import dataclasses
from collections.abc import Sequence

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
    """Returns the tokens kept of a row: `begin`, where it begins with it, and its newest ones."""
    row, begin = list(row), list(begin)
    if len(row) <= self.keep:
      return row
    head = begin if row[: len(begin)] == begin else []
    return head + row[len(row) - self.keep + len(head) :]
