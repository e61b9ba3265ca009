"""Prompts of a command, continued by an engine: the texts of a decoder with `slot_cache`."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Variables, facts_of
from bmx.parallel import Layout
from bmx.serve.decode import Inputs, check_prompts, prompt_names
from bmx.serve.engine import Engine
from bmx.serve.generate import GenerationStats
from bmx.serve.rows import Output, Request
from bmx.serve.sample import Sampling
from bmx.serve.slide import Slide
from bmx.serve.speculate import Draft

ROWS = 16  # texts that are generated at once; further ones wait until a row is free


class SlotGenerator:
  """Generates any number of texts, as `generate.Generator` does for decoders with other caches.

  Args:
    model: a decoder with `slot_cache`, see `decode.decoder`.
    params: its variables, see `decode.decoder`.
    layout: mesh and rules.
    sampling: how tokens are drawn.
    ends: token ids that end a text.
    begin: ids that a text that slides keeps where it begins with them.
    slide: share of the model's positions that a text keeps, its newest tokens, once all are used;
      0 ends it there. See `Slide`.
    draft: a small model that proposes tokens, for greedy texts alone; see `speculate`.
  """

  def __init__(
    self,
    model: Any,
    params: Variables,
    layout: Layout,
    sampling: Sampling,
    ends: Sequence[int] = (),
    begin: Sequence[int] = (),
    slide: float = 0.0,
    draft: Draft | None = None,
  ):
    self.model, self.layout, self.sampling = model, layout, sampling
    self.ends, self.begin, self.share = tuple(ends), tuple(begin), slide
    self.slide = Slide.of(slide, facts_of(model).max_seq_len, begin)
    self.draft = draft
    self.engines: dict[int, Engine] = {}  # by number of rows
    self._params = params

  @property
  def params(self) -> Variables:
    """The variables; others of the same shapes can be set between two generations."""
    return self._params

  @params.setter
  def params(self, params: Variables) -> None:
    self._params = params
    for engine in self.engines.values():
      engine.forget()
      engine.variables = params

  def stream(
    self,
    inputs: Inputs,
    max_new_tokens: int,
    seed: int = 0,
    stats: GenerationStats | None = None,
    row: int = 0,
  ) -> Iterator[tuple[np.ndarray, Callable[[Sequence[int]], None]]]:
    """Yields new tokens of all texts, call by call of the engine.

    The draws of a text depend on (seed, its number, its prompt), not on the texts beside it.

    Args:
      inputs: prompts, token ids; or a mapping that holds them as 'tokens' and nothing else.
      max_new_tokens: per text.
      seed: of the draws.
      stats: counts are added to it.
      row: number of the first text.

    Yields:
      (new ids int32 [B, n], -1 where a text has fewer; a function that ends the given texts).

    Raises:
      InputError: see `decode.check_prompts`; inputs that the model does not read.
      RuntimeError: another stream of this generator is open.
    """
    prompts = _prompts(inputs)
    check_prompts(prompts, facts_of(self.model), prompt_names(len(prompts), row))
    if not all(engine.idle for engine in self.engines.values()):
      raise RuntimeError('another stream of this generator is open: read or close it first')
    engine = self._engine(len(prompts))
    engine.stats = stats or GenerationStats()
    made = (
      Request(prompt, max_new_tokens, self.sampling, seed, row + i)
      for i, prompt in enumerate(prompts)
    )
    numbers = [engine.submit(request) for request in made]

    def stop(some: Sequence[int]) -> None:
      for i in some:
        engine.cancel(numbers[i])

    try:
      while not engine.idle:
        yield _table(engine.step(), numbers, engine.programs.most), stop
    finally:  # a reader may leave early
      stop(range(len(numbers)))

  def _engine(self, count: int) -> Engine:
    """Returns the engine for so many texts; others keep their programs only."""
    shards = math.prod(self.layout.mesh.shape[a] for a in self.layout.compute['batch'])
    rows = -(-min(count, max(ROWS, shards)) // shards) * shards
    for other, engine in self.engines.items():
      if other != rows:
        engine.forget()
    if rows not in self.engines:
      self.engines[rows] = Engine(
        self.model, self._params, self.layout, rows=rows, ends=self.ends, slide=self.share,
        begin=self.begin, draft=self.draft,
      )  # fmt: skip
    return self.engines[rows]


def _prompts(inputs: Inputs) -> Sequence[Sequence[int]]:
  if not isinstance(inputs, Mapping):
    return inputs
  others = [name for name in inputs if name != 'tokens']
  if others:
    raise InputError(f'inputs={", ".join(others)}: expected prompts, which the model reads alone')
  return inputs['tokens']


def _table(outputs: Sequence[Output], numbers: Sequence[int], most: int) -> np.ndarray:
  """Returns the new ids of each text, int32 [B, most], -1 behind them."""
  table = np.full((len(numbers), most), -1, np.int32)
  for output in outputs:
    table[output.request - numbers[0], : len(output.tokens)] = output.tokens
  return table
