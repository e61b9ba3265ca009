"""Compiled beam search with one model."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Variables, facts_of
from bmx.ops.beams import beam_search
from bmx.parallel import Layout, jit
from bmx.serve.decode import Inputs, next_logits, pad, prefill, room, steps_for


class BeamSearch:
  """Compiled beam search with one model, see `ops.beams.beam_search`.

  Args:
    model: a decoder whose cache is an `ops.cache.RowCache`, see `decode.decoder`.
    params: its variables, see `decode.decoder`.
    layout: mesh and rules.
    num_beams: K.
    ends: token ids that end a text.
    length_penalty: exponent of the length; 0 compares log-probabilities.
    begin: the prompt of inputs without token prompts, a begin-of-sequence id for instance.

  Raises:
    InputError: num_beams is below 1 or above the vocabulary size.
  """

  def __init__(
    self,
    model: Any,
    params: Variables,
    layout: Layout,
    num_beams: int,
    ends: Sequence[int] = (),
    length_penalty: float = 1.0,
    begin: Sequence[int] = (),
  ):
    vocab_size = facts_of(model).vocab_size or num_beams
    if num_beams < 1 or num_beams > vocab_size:
      raise InputError(
        f'generate.num_beams={num_beams}: expected 1 <= num_beams <= vocab_size={vocab_size}'
      )
    self.model, self.params, self.layout = model, params, layout
    self.num_beams, self.ends, self.length_penalty = num_beams, tuple(ends), length_penalty
    self.begin = tuple(begin)
    self.programs: dict[Any, Any] = {}

  def __call__(self, inputs: Inputs, max_new_tokens: int) -> tuple[list[list[int]], np.ndarray]:
    """Searches the best text of each row; a row ends with the last of the model's positions.

    Args:
      inputs: see `decode.pad`.
      max_new_tokens: per row.

    Returns:
      (new ids of each row without the end, log-probability / length^length_penalty float32 [B]).

    Raises:
      InputError: see `decode.pad`, or the model's cache cannot reorder its rows.
    """
    padded = pad(inputs, self.model, self.layout, self.begin)
    free = room(self.model, padded.prompt_lengths, max_new_tokens)
    free[padded.rows :] = 0
    n = steps_for(free, max_new_tokens)
    name = padded.signature, n
    if name not in self.programs:
      search = lambda p, arrays, free: self._search(p, arrays, free, n)
      self.programs[name] = jit(search, self.layout, out_shardings=self.layout.sharding())
    result = jax.device_get(self.programs[name](self.params, padded.arrays, free))
    new, length, score = (x[: padded.rows] for x in result)
    texts = [row[:count].tolist() for row, count in zip(new, length, strict=True)]
    return [ids[:-1] if ids and ids[-1] in self.ends else ids for ids in texts], score

  def _search(self, params, arrays, free, n):
    def extend(tokens, cache):
      hidden, cache = self.model.apply(params, tokens, cache, method='extend')
      return next_logits(self.model, params, hidden), cache

    cache, logits = prefill(self.model, params, arrays, arrays['tokens'].shape[1] + n)
    return beam_search(
      cache, logits, extend, num_beams=self.num_beams, ends=self.ends,
      length_penalty=self.length_penalty, free=free, steps=n,
    )  # fmt: skip
