"""Continuous batching: requests enter and leave the rows of one cache while others generate.

A fixed number of programs does all the work, see `programs.Programs`: for each length of the cache
a prefill per chunk size and a decoding call. The cache is as long as its longest busy row needs.
What each row does is an argument of a call, so the device holds no queue.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Variables, facts_of
from bmx.ops.slots import SlotCache
from bmx.parallel import Layout
from bmx.serve.decode import check_decoder, check_prompts, decoder
from bmx.serve.generate import draw_key
from bmx.serve.programs import STEPS, Chunk, EngineState, Programs, Rows, slots_of
from bmx.serve.rows import Output, Request, Row, common_length, next_chunk
from bmx.serve.sample import RowSampling
from bmx.serve.slide import Slide

CHUNKS = (16, 64, 256)  # sizes of a prefill call, in tokens
READ_TOKENS = 256  # that are read between two decoding calls once half of the busy rows generate
LEAST_SLOTS, SIZES = 64, 3  # of the cache: the shortest length, and the number of lengths


@runtime_checkable
class SlotDecoder(Protocol):
  """A decoder whose rows can begin and end on their own."""

  def slot_cache(self, rows: int, slots: int) -> SlotCache:
    """Returns an empty cache; `extend` takes it."""
    ...


class Engine:
  """Generates tokens for many requests at once.

  Args:
    model: a decoder with `slot_cache`, in its training form.
    params: its plain weights.
    layout: mesh and rules.
    rows: requests that generate at once; a multiple of the devices that hold the batch.
    context: tokens of a row, prompt included; 0 is the model's `max_seq_len`.
    ends: token ids that end a text.
    chunks: sizes of prefill calls, ascending.
    reuse: whether a prompt that begins as another row's tokens do starts from its cache.
    slide: share of the context that a text keeps, its newest tokens, once all of it is used; 0 ends
      the text there. See `Slide`.
    begin: ids that a text that slides keeps where it begins with them.
    cache: the config word `generate.cache`.
    quantized: kernels that `params` lacks, as they are stored.

  Raises:
    InputError: a model that cannot generate this way; sizes out of range.
  """

  def __init__(
    self,
    model: Any,
    params: Variables,
    layout: Layout,
    *,
    rows: int = 16,
    context: int = 0,
    ends: Sequence[int] = (),
    chunks: Sequence[int] = CHUNKS,
    reuse: bool = True,
    slide: float = 0.0,
    begin: Sequence[int] = (),
    cache: str = 'auto',
    quantized: Variables | None = None,
  ):
    check_decoder(model, layout)
    if not isinstance(model, SlotDecoder):
      raise InputError(
        f'{type(model).__name__}: expected a decoder with `slot_cache`, as bmx.models.gpt:GPT is'
      )
    self.shards = math.prod(layout.mesh.shape[a] for a in layout.compute['batch'])
    longest = facts_of(model).max_seq_len
    self.context = min(context or longest, longest or context)
    if rows < 1 or rows % self.shards:
      raise InputError(f'rows={rows}: expected a multiple of {self.shards}, the shards of a batch')
    if self.context < 2:
      raise InputError(f'context={context}: expected at least 2 tokens')
    self.reuse, self.begin = reuse, tuple(begin)
    self.slide = Slide.of(slide, self.context, begin)
    self.model, self.variables = decoder(model, params, layout, cache, quantized)
    self.chunks = tuple(c for c in sorted(chunks) if c < self.context) or (self.context,)
    self.sizes = _sizes(self.context)
    self.ends = tuple(int(x) for x in ends)
    self.rows = [Row() for _ in range(rows)]
    self.waiting: collections.deque[tuple[int, Request]] = collections.deque()
    self.numbers, self.calls = itertools.count(), 0
    self.programs = Programs(self.model, layout, rows, self.shards, self.ends)
    self._state: EngineState | None = None

  def compile(self) -> None:
    """Compiles every program; without it each is compiled at its first call."""
    self.programs.compile(self.variables, self.chunks, self.sizes)

  @property
  def state(self) -> EngineState:
    """The arrays of the engine."""
    if self._state is None:
      self._state = self.programs.empty(self.variables, self.sizes[0])
    return self._state

  @state.setter
  def state(self, state: EngineState) -> None:
    self._state = state

  def forget(self) -> None:
    """Drops the cache and what its rows hold. Raises RuntimeError while requests are answered."""
    if not self.idle:
      raise RuntimeError('expected an idle engine')
    self._state = None
    for row in self.rows:
      row.tokens = []

  @property
  def idle(self) -> bool:
    """Whether no request waits or generates."""
    return not self.waiting and all(row.request is None for row in self.rows)

  @property
  def busy(self) -> int:
    """Number of rows that hold a request."""
    return sum(row.request is not None for row in self.rows)

  def check(self, request: Request) -> None:
    """Raises InputError if a prompt is empty, too long, or has ids that the model does not know."""
    facts = dataclasses.replace(facts_of(self.model), max_seq_len=self.context)
    check_prompts([request.prompt], facts, ['prompt'])
    if request.max_new_tokens < 1:
      raise InputError(f'max_new_tokens={request.max_new_tokens}: expected at least 1')

  def submit(self, request: Request) -> int:
    """Queues a request; returns its number. Raises InputError as `check` does."""
    self.check(request)
    number = next(self.numbers)
    self.waiting.append((number, request))
    return number

  def cancel(self, number: int) -> None:
    """Frees the row of a request, or takes it from the queue; unknown numbers are ignored."""
    self.waiting = collections.deque(x for x in self.waiting if x[0] != number)
    for row in self.rows:
      if row.request == number:
        row.request = None

  def step(self) -> list[Output]:
    """Reads waiting prompts, then decodes some tokens; returns the new tokens.

    Prompts are read until half of the busy rows generate, and READ_TOKENS further at most.
    """
    self.calls += 1
    self._admit()
    self._shrink()
    read = 0
    while any(row.missing for row in self.rows):
      if read >= READ_TOKENS and 2 * self._decoding >= self.busy:
        break
      read += self._read()
    return self._decode()

  def run(self, requests: Sequence[Request]) -> list[list[int]]:
    """Returns the new tokens of each request, all of them finished."""
    numbers = {self.submit(request): i for i, request in enumerate(requests)}
    found: list[list[int]] = [[] for _ in requests]
    while not self.idle:
      for output in self.step():
        if output.request in numbers:
          found[numbers[output.request]] += output.tokens
    return found

  @property
  def _decoding(self) -> int:
    return sum(row.decoding for row in self.rows)

  @property
  def _per_shard(self) -> int:
    return len(self.rows) // self.shards

  def _admit(self) -> None:
    """Gives free rows to waiting requests, in their order."""
    while self.waiting:
      free = [i for i, row in enumerate(self.rows) if row.request is None]
      if not free:
        return
      number, request = self.waiting.popleft()
      self._start(free, number, request)

  def _start(self, free: list[int], number: int, request: Request) -> None:
    """Chooses a row; one that has tokens in common with another of its shard gets a copy."""
    place = min(free, key=lambda i: (len(self.rows[i].tokens) > 0, self.rows[i].used))
    source, common = place, 0
    if self.reuse and request.sampling.repetition_penalty == 1:
      place, source, common = self._shared(free, place, request.prompt)
    if source != place and common:
      self._copy(source, place)
    room = math.inf if self.slide else self.context - len(request.prompt)
    self.rows[place] = Row(
      tokens=list(request.prompt[:common]), request=number, given=request, wanted=request.prompt,
      left=int(min(request.max_new_tokens, room)), used=self.calls,
      key=np.asarray(jax.random.fold_in(draw_key(request.seed), request.number)),
    )  # fmt: skip

  def _shared(self, free: list[int], place: int, prompt: Sequence[int]) -> tuple[int, int, int]:
    """Returns (free row, row of the same shard to start from, common tokens), the most of them."""
    best = place, place, 0
    for j, row in enumerate(self.rows):
      shard = j // self._per_shard
      near = [i for i in free if i // self._per_shard == shard]
      common = common_length(row.tokens, prompt)
      if near and (common, j in free) > (best[2], best[0] == best[1]) and common:
        own = min(near, key=lambda i: (len(self.rows[i].tokens) > 0, self.rows[i].used))
        best = (j if j in free else own), j, common
    return best

  def _copy(self, source: int, place: int) -> None:
    sources, rows = (np.zeros(self.shards, np.int32) for _ in range(2))
    shard = place // self._per_shard
    sources[shard], rows[shard] = source % self._per_shard, place % self._per_shard
    self.state = self.programs.copy(self.state, sources, rows)

  def _shrink(self) -> None:
    """Shortens the cache to what the busy rows hold; free rows keep what fits."""
    held = (max(len(row.tokens), len(row.wanted)) for row in self.rows if row.request is not None)
    size = self._size(max(held, default=0))
    if self._state is not None and size < slots_of(self.state):
      self.state = self.programs.resize(self.state, size)
      for row in self.rows:
        row.tokens = row.tokens[:size]

  def _grow(self, tokens: int) -> None:
    """Makes room for rows of so many tokens."""
    size = max(self._size(tokens), slots_of(self.state))
    self.state = self.programs.resize(self.state, size)

  def _size(self, tokens: int) -> int:
    return next(size for size in self.sizes if size >= tokens)

  def _read(self) -> int:
    """Reads one chunk in every shard that has a prompt to read; returns its size in tokens."""
    chosen: dict[int, Row] = {}
    for i, row in enumerate(self.rows):
      if row.missing and i // self._per_shard not in chosen:
        chosen[i // self._per_shard] = row
    size = next_chunk(max(row.missing for row in chosen.values()), self.chunks)
    ends = [len(row.tokens) + min(size, row.missing) for row in chosen.values()]
    self._grow(max(ends))
    self.state = self.programs.prefill(self.variables, self.state, self._chunk(chosen, size))
    for row, end in zip(chosen.values(), ends, strict=True):
      row.tokens, row.fresh = [*row.wanted[:end]], False
    return size

  def _chunk(self, chosen: dict[int, Row], size: int) -> Chunk:
    """Arguments of a prefill call: shard -> the row that it reads."""
    tokens = np.zeros((self.shards, size), np.int32)
    count, number, at = (np.zeros(self.shards, np.int32) for _ in range(3))
    fresh = np.zeros(self.shards, bool)
    for shard, row in chosen.items():
      part = row.wanted[len(row.tokens) : len(row.tokens) + size]
      tokens[shard, : len(part)] = part
      count[shard], at[shard], fresh[shard] = len(part), len(row.tokens), row.fresh
      number[shard] = next(i for i, x in enumerate(self.rows) if x is row) % self._per_shard
    return Chunk(tokens, count, number, at, fresh)

  def _room(self, row: Row) -> int:
    """Returns how many tokens a row generates until it ends or slides."""
    return min(row.left, self.context - len(row.tokens))

  def _active(self) -> Rows:
    """Arguments of a decoding call: what each row does."""
    of = lambda get, dtype: np.array([get(row) for row in self.rows], dtype)
    options = lambda name, dtype: of(lambda row: getattr(row.given.sampling, name), dtype)
    none = np.zeros(2, np.uint32)
    return Rows(
      active=of(lambda row: row.decoding, bool),
      at=of(lambda row: len(row.tokens), np.int32),
      left=of(self._room, np.int32),
      count=of(lambda row: row.generated, np.int32),
      keys=of(lambda row: none if row.key is None else row.key, np.uint32),
      sampling=RowSampling(
        options('temperature', np.float32), options('top_k', np.int32),
        options('top_p', np.float32), options('repetition_penalty', np.float32),
      ),
    )  # fmt: skip

  def _decode(self) -> list[Output]:
    on = [(i, row) for i, row in enumerate(self.rows) if row.decoding]
    if not on:
      return []
    rooms = [self._room(row) for _, row in on]
    n = min(STEPS, min(rooms) if self.waiting else max(rooms))
    self._grow(max(len(row.tokens) + min(n, room) for (_, row), room in zip(on, rooms, strict=True)))
    self.state, new, likely = self.programs.decode(self.variables, self.state, self._active(), n)
    return [self._take(row, new[i], likely[i]) for i, row in on]

  def _take(self, row: Row, new: np.ndarray, likely: np.ndarray) -> Output:
    """Notes the new tokens of a row, and frees it at its end."""
    ids = [int(x) for x in new if x >= 0]
    row.tokens += ids
    row.generated, row.left = row.generated + len(ids), row.left - len(ids)
    finish = 'stop' if ids[-1] in self.ends else '' if row.left else 'length'
    assert row.request is not None
    output = Output(row.request, ids, [float(x) for x in likely[: len(ids)]], finish)
    if finish:
      row.request = None
    elif len(row.tokens) == self.context and self.slide:
      row.wanted, row.tokens = self.slide.newest(row.tokens, self.begin), []
    return output


def _sizes(context: int) -> tuple[int, ...]:
  """Returns the lengths of the cache: the context, its half, ..., none below LEAST_SLOTS."""
  halves = (-(-context // 2**k) for k in range(SIZES))
  return tuple(sorted({size for size in halves if size >= LEAST_SLOTS} | {context}))
