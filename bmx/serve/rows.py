"""Requests of an engine, and the rows of its cache as the host knows them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bmx.serve.sample import RowSampling, Sampling
from bmx.serve.state import Chunk, Rows

GREEDY = Sampling(temperature=0.0)
LEAST_SLOTS, LENGTHS = 64, 4  # of the cache: its shortest length, and the number of lengths
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
    adapter: number of its adapter, see `serve.adapters`; 0: the model alone.
  """

  prompt: Sequence[int]
  max_new_tokens: int
  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  seed: int = 0
  number: int = 0
  adapter: int = 0


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
    wanted: ids that the cache must hold before the row generates: the prompt, or the tokens kept of
      a text that slides.
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


def is_read(rows: Sequence[Row], request: Request, least: int) -> bool:
  """Whether a row is reading `least` more tokens of a prompt than any row holds."""
  near = [row for row in rows if row.given.adapter == request.adapter]
  held = [common_length(row.tokens, request.prompt) for row in near]
  read = [common_length(row.wanted, request.prompt) for row in near if row.missing]
  return max(read, default=0) >= max(held, default=0) + least


def needed(rows: Sequence[Row], waiting: Sequence[Request]) -> int:
  """Returns the tokens of the longest busy row, or of the prompts that free rows get next."""
  busy = [max(len(row.tokens), len(row.wanted)) for row in rows if row.request is not None]
  coming = [len(request.prompt) for request in waiting[: len(rows) - len(busy)]]
  return max([*busy, *coming], default=0)


def unread(rows: Sequence[Row], per_shard: int) -> dict[int, Row]:
  """Returns shard -> the first of its rows that has a prompt to read."""
  found: dict[int, Row] = {}
  for i, row in enumerate(rows):
    if row.missing:
      found.setdefault(i // per_shard, row)
  return found


class Place(NamedTuple):
  """Where a prompt is read.

  Attributes:
    row: number of a free row.
    source: the row of the same shard that the prompt starts from, mostly `row` itself.
    common: tokens that it has in common with the source.
  """

  row: int
  source: int
  common: int


def choose(
  rows: Sequence[Row], free: Sequence[int], per_shard: int, request: Request, share: bool
) -> Place:
  """Returns the place with the most tokens in common, of equals one without a copy.

  Args:
    rows: of the engine.
    free: numbers of rows without a request, at least one.
    per_shard: rows of a shard: no row leaves its device.
    request: whose prompt is read.
    share: whether it may start from the tokens of a row, which has the same adapter.
  """
  age = lambda i: (len(rows[i].tokens) > 0, rows[i].used)
  oldest = min(free, key=age)
  places = [Place(oldest, oldest, 0)]
  for source, row in enumerate(rows):
    near = [i for i in free if i // per_shard == source // per_shard]
    if not near or not share or row.given.adapter != request.adapter:
      continue
    if common := common_length(row.tokens, request.prompt):
      places.append(Place(source if source in near else min(near, key=age), source, common))
  return max(places, key=lambda p: (p.common, p.row == p.source))


def next_chunk(missing: int, chunks: Sequence[int]) -> int:
  """Returns the size of the next prefill call: of those that cost least for `missing` tokens.

  A call costs as its tokens and CALL_TOKENS more: the weights are read.
  """
  return min(chunks, key=lambda c: (-(-missing // c) * (c + CALL_TOKENS), c))


def lengths(context: int) -> tuple[int, ...]:
  """Returns the lengths of the cache: equal steps up to the context, none below LEAST_SLOTS."""
  parts = (-(-context * k // LENGTHS) for k in range(1, LENGTHS))
  return *(size for size in parts if size >= LEAST_SLOTS), context


def chunk_of(chosen: Mapping[int, Row], rows: Sequence[Row], shards: int, size: int) -> Chunk:
  """Returns the arguments of a prefill call.

  Args:
    chosen: shard -> the row that it reads.
    rows: of the engine.
    shards: number of them.
    size: tokens of the call.
  """
  tokens, fresh = np.zeros((shards, size), np.int32), np.zeros(shards, bool)
  count, number, at, adapter = (np.zeros(shards, np.int32) for _ in range(4))
  for shard, row in chosen.items():
    part = row.wanted[len(row.tokens) : len(row.tokens) + size]
    tokens[shard, : len(part)] = part
    count[shard], at[shard], fresh[shard] = len(part), len(row.tokens), row.fresh
    adapter[shard] = row.given.adapter
    number[shard] = next(i for i, x in enumerate(rows) if x is row) % (len(rows) // shards)
  return Chunk(tokens, count, number, at, fresh, adapter)


def jobs_of(rows: Sequence[Row], left: Sequence[int]) -> Rows:
  """Returns the arguments of a decoding call; `left`: tokens that each row may generate in it."""
  of = lambda get, dtype: np.array([get(row) for row in rows], dtype)
  sampling = [row.given.sampling if row.decoding else GREEDY for row in rows]
  none = np.zeros(2, np.uint32)
  return Rows(
    active=of(lambda row: row.decoding, bool),
    at=of(lambda row: len(row.tokens), np.int32),
    left=np.array(left, np.int32),
    count=of(lambda row: row.generated, np.int32),
    keys=of(lambda row: none if row.key is None else row.key, np.uint32),
    adapter=of(lambda row: row.given.adapter, np.int32),
    sampling=RowSampling.of(sampling),
  )
