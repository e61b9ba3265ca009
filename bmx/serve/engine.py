"""Continuous batching: requests enter and leave the rows of one cache while others generate.

A fixed number of programs does all the work, see `programs.Programs`: for each length of the cache
a prefill per chunk size and a decoding call. The cache is as long as its longest busy row needs.
What each row does is an argument of a call, so the device holds no queue.
"""

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Variables, facts_of
from bmx.parallel import Layout
from bmx.serve.decode import SlotDecoder, check_decoder, check_prompts
from bmx.serve.generate import GenerationStats, draw_key
from bmx.serve.programs import Programs
from bmx.serve.rows import (
  Output,
  Request,
  Row,
  choose,
  chunk_of,
  is_read,
  jobs_of,
  lengths,
  needed,
  next_chunk,
  unread,
)
from bmx.serve.slide import Slide
from bmx.serve.speculate import Draft, SpeculativePrograms
from bmx.serve.state import EngineState, slots_of

CHUNKS = (16, 64, 256)  # sizes of a prefill call, in tokens
READ_TOKENS = 256  # that are read at least between two decoding calls, if as many wait

MAX_TOKENS = 2**31 - 1  # of a text: they are counted in int32


class Engine:
  """Generates tokens for many requests at once.

  Args:
    model: a decoder with `slot_cache`, see `decode.decoder`.
    variables: of it, see `decode.decoder`; after `forget` others can be set.
    layout: mesh and rules.
    rows: requests that generate at once; a multiple of the devices that hold the batch.
    context: tokens of a row, prompt included; 0 is the model's `max_seq_len`.
    ends: token ids that end a text.
    chunks: sizes of prefill calls, ascending.
    reuse: whether a prompt that begins as another row's tokens do starts from its cache.
    slide: share of the context that a text keeps, its newest tokens, once all of it is used; 0 ends
      the text there. See `Slide`.
    begin: ids that a text that slides keeps where it begins with them.
    draft: a small model that proposes tokens, for greedy requests alone; see `speculate`.

  Raises:
    InputError: a model that cannot generate this way; sizes out of range.
  """

  def __init__(
    self,
    model: Any,
    variables: Variables,
    layout: Layout,
    *,
    rows: int = 16,
    context: int = 0,
    ends: Sequence[int] = (),
    chunks: Sequence[int] = CHUNKS,
    reuse: bool = True,
    slide: float = 0.0,
    begin: Sequence[int] = (),
    draft: Draft | None = None,
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
    self.model, self.variables, self.stats = model, variables, GenerationStats()
    self.chunks = tuple(c for c in sorted(chunks) if c < self.context) or (self.context,)
    self.sizes = lengths(self.context)
    self.ends = tuple(int(x) for x in ends)
    self.rows = [Row() for _ in range(rows)]
    self.waiting: collections.deque[tuple[int, Request]] = collections.deque()
    self.numbers, self.calls = itertools.count(), 0
    given = model, layout, rows, self.shards, self.ends
    self.programs = SpeculativePrograms(*given, draft, self.context) if draft else Programs(*given)
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

  def forget(self) -> None:
    """Drops the cache and what its rows hold. Raises RuntimeError while requests are answered."""
    if not self.idle:
      raise RuntimeError('expected an idle engine')
    self._drop()

  def _drop(self) -> None:
    self._state, self.rows = None, [Row() for _ in self.rows]

  @property
  def idle(self) -> bool:
    """Whether no request waits or generates."""
    return not self.waiting and all(row.request is None for row in self.rows)

  @property
  def busy(self) -> int:
    """Number of rows that hold a request."""
    return sum(row.request is not None for row in self.rows)

  def check(self, request: Request) -> None:
    """Raises InputError if a prompt is empty, too long, or has ids that the model does not know.

    Options that the programs do not have are refused too.
    """
    self.programs.check(request)
    facts = dataclasses.replace(facts_of(self.model), max_seq_len=self.context)
    check_prompts([request.prompt], facts, ['prompt'])
    if request.max_new_tokens < 1:
      raise InputError(f'max_new_tokens={request.max_new_tokens}: expected at least 1')

  def submit(self, request: Request) -> int:
    """Queues a request; returns its number. Raises InputError as `check` does."""
    self.check(request)
    number = next(self.numbers)
    self.waiting.append((number, request))
    self.stats.prompt_tokens += len(request.prompt)
    return number

  def cancel(self, number: int) -> None:
    """Frees the row of a request, or takes it from the queue; unknown numbers are ignored."""
    self.waiting = collections.deque(x for x in self.waiting if x[0] != number)
    for row in self.rows:
      if row.request == number:
        row.request = None

  def step(self) -> list[Output]:
    """Reads waiting prompts, then decodes some tokens; returns the new tokens.

    READ_TOKENS are read, and more until half of the rows that could generate do. An exception,
    Ctrl-C too, ends the requests in the rows: their cache was given to the call that failed.
    """
    try:
      return self._step()
    except BaseException:
      self._drop()
      raise

  def _step(self) -> list[Output]:
    self.calls += 1
    self._shrink()
    stats, compiled, began = self.stats, self.programs.seconds, self._clock()
    self._fill()
    filled = self._clock()
    outputs = self._decode()
    stats.prefill_seconds += filled - began
    stats.decode_seconds += self._clock() - filled
    stats.compile_seconds += self.programs.seconds - compiled
    return outputs

  def _clock(self) -> float:
    """Returns seconds without those of compilation."""
    return time.perf_counter() - self.programs.seconds

  def _fill(self) -> None:
    """Admits requests and reads their prompts."""
    read = 0
    while True:
      self._admit()
      most = min(len(self.rows), self.busy + len(self.waiting))
      enough = read >= READ_TOKENS and 2 * sum(row.decoding for row in self.rows) >= most
      if enough or not any(row.missing for row in self.rows):
        break
      read += self._read()
    if read:
      jax.block_until_ready(self.state.logits)

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
  def _per_shard(self) -> int:
    return len(self.rows) // self.shards

  def _admit(self) -> None:
    """Gives free rows to waiting requests, in their order.

    A prompt that begins as another one which is read just now does waits for it.
    """
    while self.waiting:
      free = [i for i, row in enumerate(self.rows) if row.request is None]
      number, request = self.waiting[0]
      late = self._shares(request) and is_read(self.rows, request, self.chunks[0])
      if late or not free:
        return
      self.waiting.popleft()
      self._start(free, number, request)

  def _shares(self, request: Request) -> bool:
    """Whether a prompt may start from another row: `seen` is not copied."""
    return self.reuse and request.sampling.repetition_penalty == 1

  def _start(self, free: list[int], number: int, request: Request) -> None:
    """Chooses a row; one that has tokens in common with another of its shard gets a copy."""
    place = choose(self.rows, free, self._per_shard, request, self._shares(request))
    if place.source != place.row and place.common:
      self._copy(place.source, place.row)
    room = math.inf if self.slide else self.context - len(request.prompt)
    self.rows[place.row] = Row(
      tokens=list(request.prompt[: place.common]), request=number, given=request,
      wanted=request.prompt, left=int(min(request.max_new_tokens, room, MAX_TOKENS)),
      used=self.calls,
      key=np.asarray(jax.random.fold_in(draw_key(request.seed), request.number)),
    )  # fmt: skip

  def _copy(self, source: int, place: int) -> None:
    sources, rows = (np.zeros(self.shards, np.int32) for _ in range(2))
    shard = place // self._per_shard
    sources[shard], rows[shard] = source % self._per_shard, place % self._per_shard
    self._state = self.programs.copy(self.state, sources, rows)

  def _shrink(self) -> None:
    """Shortens the cache to what busy rows and the next prompts need; free rows keep what fits."""
    size = self._size(needed(self.rows, [request for _, request in self.waiting]))
    if self._state is not None and size < slots_of(self.state):
      self._state = self.programs.resize(self.state, size)
      for row in self.rows:
        row.tokens = row.tokens[:size]

  def _grow(self, tokens: int) -> None:
    """Lengthens the cache to at least so many tokens."""
    size = max(self._size(tokens), slots_of(self.state))
    self._state = self.programs.resize(self.state, size)

  def _size(self, tokens: int) -> int:
    return next(size for size in self.sizes if size >= tokens)

  def _read(self) -> int:
    """Reads one chunk in every shard that has a prompt to read; returns its size in tokens."""
    chosen = unread(self.rows, self._per_shard)
    size = next_chunk(max(row.missing for row in chosen.values()), self.chunks)
    ends = [len(row.tokens) + min(size, row.missing) for row in chosen.values()]
    self._grow(max(ends))
    self._state = self.programs.prefill(
      self.variables, self.state, chunk_of(chosen, self.rows, self.shards, size)
    )
    for row, end in zip(chosen.values(), ends, strict=True):
      row.tokens, row.fresh = [*row.wanted[:end]], False
    return size

  def _decode(self) -> list[Output]:
    """Generates tokens in every row that has read its prompt, until it ends or slides."""
    on = [(i, row) for i, row in enumerate(self.rows) if row.decoding]
    if not on:
      return []
    left = [min(row.left, self.context - len(row.tokens)) for row in self.rows]
    rooms, least = [left[i] for i, _ in on], self.programs.least
    n = min(self.programs.most, max(min(rooms), least) if self.waiting else max(rooms))
    self._grow(max(len(row.tokens) + min(n, left[i]) for i, row in on))
    active = jobs_of(self.rows, left)
    self._state, new, likely = self.programs.decode(self.variables, self.state, active, n)
    return [self._take(row, new[i], likely[i]) for i, row in on]

  def _take(self, row: Row, new: np.ndarray, likely: np.ndarray) -> Output:
    """Notes the new tokens of a row, and frees it at its end."""
    ids = [int(x) for x in new if x >= 0]
    row.tokens += ids
    self.stats.new_tokens += len(ids)
    row.generated, row.left = row.generated + len(ids), row.left - len(ids)
    finish = 'stop' if ids[-1] in self.ends else '' if row.left else 'length'
    assert row.request is not None
    output = Output(row.request, ids, [float(x) for x in likely[: len(ids)]], finish)
    if finish:
      row.request = None
    elif len(row.tokens) == self.context and self.slide:
      row.wanted, row.tokens = self.slide.newest(row.tokens, self.begin), []
      self.stats.slides += 1
    return output
