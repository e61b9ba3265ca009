"""Continuous batching: requests enter and leave the rows of one cache while others generate.

A fixed number of programs is compiled before the first request: one prefill per chunk size, one
decoding call. The job of each row is an argument of a call, so the device holds no queue.
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
from bmx.parallel import Layout, jit
from bmx.serve.decode import check_decoder, check_prompts, decoder
from bmx.serve.generate import draw_key
from bmx.serve.programs import Chunk, Rows, decode, empty_state, prefill_chunk
from bmx.serve.rows import Output, Request, Row, common_length
from bmx.serve.sample import RowSampling

CHUNKS = (16, 64, 256)  # sizes of a prefill call, in tokens
STEPS = 16  # most tokens of a decoding call; fewer while a prompt waits
STEPS_BESIDE_PREFILL = 4


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
    quantized: Variables | None = None,
  ):
    check_decoder(model, layout)
    if not isinstance(model, SlotDecoder):
      raise InputError(
        f'{type(model).__name__}: expected a decoder with `slot_cache`, as bmx.models.gpt:GPT is'
      )
    self.layout, self.reuse = layout, reuse
    self.shards = math.prod(layout.mesh.shape[a] for a in layout.compute['batch'])
    longest = facts_of(model).max_seq_len
    self.context = min(context or longest, longest or context)
    if rows < 1 or rows % self.shards:
      raise InputError(f'rows={rows}: expected a multiple of {self.shards}, the shards of a batch')
    if self.context < 2:
      raise InputError(f'context={context}: expected at least 2 tokens')
    self.model, self.variables = decoder(model, params, layout, quantized=quantized)
    self.chunks = tuple(c for c in sorted(chunks) if c < self.context) or (self.context,)
    self.ends = tuple(int(x) for x in ends)
    self.rows = [Row(source=i) for i in range(rows)]
    self.waiting: collections.deque[tuple[int, Request]] = collections.deque()
    self.numbers, self.calls = itertools.count(), 0
    self._compile()

  def _compile(self) -> None:
    """Compiles every program; the state keeps its placement in each call."""
    slots = self.context + self.chunks[-1]
    model, everywhere = self.model, self.layout.sharding()
    begin = jit(lambda v: empty_state(model, v, len(self.rows), slots), self.layout)
    self.state = begin(self.variables)
    where = jax.tree.map(lambda x: x.sharding, self.state)
    read = jit(
      lambda v, state, chunk: prefill_chunk(model, v, state, chunk),
      self.layout,
      donate_argnums=(1,),
      out_shardings=where,
    )
    args = self.variables, self.state
    self.prefill = {c: read.lower(*args, self._chunk({}, c)).compile() for c in self.chunks}
    more = jit(
      lambda v, state, rows, ends, n: decode(model, v, state, rows, ends, n, STEPS),
      self.layout,
      donate_argnums=(1,),
      out_shardings=(where, everywhere, everywhere),
    )
    self.decode = more.lower(*args, *self._active(), np.int32(1)).compile()

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
    """Reads a chunk of waiting prompts, then decodes some tokens; returns the new tokens."""
    self.calls += 1
    self._admit()
    reading = self._read()
    return self._decode(STEPS_BESIDE_PREFILL if reading else STEPS)

  def run(self, requests: Sequence[Request]) -> list[list[int]]:
    """Returns the new tokens of each request, all of them finished."""
    numbers = {self.submit(request): i for i, request in enumerate(requests)}
    found: list[list[int]] = [[] for _ in requests]
    while not self.idle:
      for output in self.step():
        if output.request in numbers:
          found[numbers[output.request]] += output.tokens
    return found

  def _admit(self) -> None:
    """Gives free rows to waiting requests, in their order."""
    while self.waiting:
      free = [i for i, row in enumerate(self.rows) if row.request is None]
      if not free:
        return
      number, request = self.waiting.popleft()
      self._start(free, number, request)

  def _start(self, free: list[int], number: int, request: Request) -> None:
    """Chooses the row, and the row whose tokens the prompt begins with."""
    per = len(self.rows) // self.shards
    oldest = min(free, key=lambda i: (len(self.rows[i].tokens) > 0, self.rows[i].used))
    place, source, common = oldest, oldest, 0
    if self.reuse and request.sampling.repetition_penalty == 1:
      for i in free:  # the best row of the same shard to start from, its own included
        first = i // per * per
        for j in (j for j in range(first, first + per) if self.rows[j].source == j):
          n = common_length(self.rows[j].tokens, request.prompt)
          if (n, i == j) > (common, place == source) and n > 0:
            place, source, common = i, j, n
    keys = jax.random.fold_in(draw_key(request.seed), request.number)
    left = min(request.max_new_tokens, self.context - len(request.prompt))
    self.rows[place] = Row(
      tokens=list(request.prompt[:common]), request=number, given=request, read=common,
      source=source, left=left, key=np.asarray(keys), used=self.calls,
    )  # fmt: skip

  def _read(self) -> bool:
    """Reads one chunk of a prompt in every shard; returns whether prompts are left to read."""
    per, chosen = len(self.rows) // self.shards, {}
    for i, row in enumerate(self.rows):
      if row.request is not None and not row.decoding:
        chosen.setdefault(i // per, i)
    if not chosen:
      return False
    for i in chosen.values():
      self._check_source(i)
    longest = max(len(self.rows[i].given.prompt) - self.rows[i].read for i in chosen.values())
    size = next((c for c in self.chunks if c >= longest), self.chunks[-1])
    self.state = self.prefill[size](self.variables, self.state, self._chunk(chosen, size))
    for i in chosen.values():
      row = self.rows[i]
      row.tokens += row.given.prompt[row.read : row.read + size]
      row.read, row.source = len(row.tokens), i
    return any(row.request is not None and not row.decoding for row in self.rows)

  def _check_source(self, i: int) -> None:
    """Lets a prompt begin anew if the row that it continues has begun another one meanwhile."""
    row, source = self.rows[i], self.rows[self.rows[i].source]
    whole = source is row or source.source == row.source
    if not whole or source.tokens[: row.read] != row.tokens:
      row.tokens, row.read, row.source = [], 0, i

  def _chunk(self, chosen: dict[int, int], size: int) -> Chunk:
    """Arguments of a prefill call: shard -> the row that it reads."""
    per = len(self.rows) // self.shards
    tokens = np.zeros((self.shards, size), np.int32)
    numbers = {k: np.zeros(self.shards, np.int32) for k in ('count', 'row', 'source', 'at')}
    fresh = np.zeros(self.shards, bool)
    for shard, i in chosen.items():
      row = self.rows[i]
      part = row.given.prompt[row.read : row.read + size]
      tokens[shard, : len(part)] = part
      numbers['count'][shard], numbers['at'][shard] = len(part), row.read
      numbers['row'][shard], numbers['source'][shard] = i % per, row.source % per
      fresh[shard] = row.read == 0
    return Chunk(tokens, fresh=fresh, **numbers)

  def _active(self) -> tuple[Rows, np.ndarray]:
    """Arguments of a decoding call: what each row does, and the ids of ends."""
    on = [row.decoding for row in self.rows]
    options = [row.given.sampling for row in self.rows]
    sampling = RowSampling(
      np.array([s.temperature for s in options], np.float32),
      np.array([s.top_k for s in options], np.int32),
      np.array([s.top_p for s in options], np.float32),
      np.array([s.repetition_penalty for s in options], np.float32),
    )
    keys = [row.key if row.key is not None else np.zeros(2, np.uint32) for row in self.rows]
    left = np.array([row.left for row in self.rows], np.int32)
    count = np.array([row.generated for row in self.rows], np.int32)
    ends = np.array(self.ends, np.int32)
    return Rows(np.array(on), left, count, np.array(keys), sampling), ends

  def _decode(self, n: int) -> list[Output]:
    if not any(row.decoding for row in self.rows):
      return []
    args = *self._active(), np.int32(n)
    self.state, new, likely = self.decode(self.variables, self.state, *args)
    new, likely = jax.device_get((new, likely))
    return [self._take(row, new[i], likely[i]) for i, row in enumerate(self.rows) if row.decoding]

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
    return output
