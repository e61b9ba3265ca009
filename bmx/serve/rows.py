"""Requests of an engine, and the rows of its cache as the host knows them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bmx.serve.sample import Sampling

CALL_TOKENS = 32  # that a prefill call costs besides its own


@dataclasses.dataclass(frozen=True)
class Request:
  """One text to continue.

  Attributes:
    prompt: token ids.
    max_new_tokens: limit of new tokens.
    sampling: how tokens are drawn.
    seed: of the draws.
    number: of the row in a batch: rows of one seed and different numbers draw apart.
  """

  prompt: Sequence[int]
  max_new_tokens: int
  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  seed: int = 0
  number: int = 0


class Output(NamedTuple):
  """New tokens of one request.

  Attributes:
    request: number that `submit` returned.
    tokens: ids, the end that the model generated included.
    logprobs: of these ids, under the model.
    finish: '' while tokens may follow, else 'stop' (an end was generated) or 'length'.
  """

  request: int
  tokens: list[int]
  logprobs: list[float]
  finish: str


@dataclasses.dataclass
class Row:
  """A row of the cache on the host.

  Attributes:
    tokens: ids that the cache holds, in order; kept after a request for a later one that begins
      with the same tokens.
    request: number of the request; None for a free row.
    given: the request.
    wanted: ids that the cache must hold before the row generates: the prompt, or what is kept of a
      text that slides.
    fresh: whether these begin a text.
    generated: number of new tokens.
    left: number of tokens that it may still generate.
    key: uint32 [2], of its draws.
    used: number of the last call, for choosing the row that was free longest.
  """

  tokens: list[int] = dataclasses.field(default_factory=list)
  request: int | None = None
  given: Request = Request((), 0)
  wanted: Sequence[int] = ()
  fresh: bool = True
  generated: int = 0
  left: int = 0
  key: Any = None
  used: int = 0

  @property
  def missing(self) -> int:
    """Number of tokens that are read before the row generates."""
    return 0 if self.request is None else max(len(self.wanted) - len(self.tokens), 0)

  @property
  def decoding(self) -> bool:
    """Whether the row generates."""
    return self.request is not None and not self.missing


def common_length(held: Sequence[int], prompt: Sequence[int]) -> int:
  """Returns how many tokens of a prompt a row holds; the last one is always computed."""
  n = min(len(held), len(prompt) - 1)
  a, b = np.asarray(held[:n]), np.asarray(prompt[:n])
  return n if (a == b).all() else int((a != b).argmax())


def next_chunk(missing: int, chunks: Sequence[int]) -> int:
  """Returns the size of the next prefill call: of those that cost least for `missing` tokens.

  A call costs as its tokens and CALL_TOKENS more: the weights are read.
  """
  return min(chunks, key=lambda c: (-(-missing // c) * (c + CALL_TOKENS), c))
