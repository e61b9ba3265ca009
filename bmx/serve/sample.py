"""Sampling of a token from logits: pure functions of arrays."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.ops.masks import MASK_VALUE


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Options of drawing the next token.

  Attributes:
    temperature: divides the logits; 0 is greedy and draws nothing.
    top_k: draws from the top_k most likely tokens; 0 is all.
    top_p: draws from the smallest set of tokens with this total probability (Holtzman et al. 2020).
    repetition_penalty: divides positive logits of tokens that the row contains and multiplies
      negative ones (Keskar et al. 2019); 1 changes nothing.

  Raises:
    InputError: a value is out of range.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  repetition_penalty: float = 1.0

  def __post_init__(self):
    penalty = self.repetition_penalty
    for name, valid, condition in (
      ('temperature', 0 <= self.temperature < math.inf, '0 <= temperature < inf'),
      ('top_k', self.top_k >= 0, 'top_k >= 0'),
      ('top_p', 0 < self.top_p <= 1, '0 < top_p <= 1'),
      ('repetition_penalty', 0 < penalty < math.inf, '0 < repetition_penalty < inf'),
    ):
      if not valid:
        value = dataclasses.asdict(self)[name]
        raise InputError(f'generate.{name}={value}: expected {condition}')


class RowSampling(NamedTuple):
  """Options of `Sampling`, one of each per row: float32 [B], but `top_k` int32 [B]."""

  temperature: Any
  top_k: Any
  top_p: Any
  repetition_penalty: Any

  @classmethod
  def of(cls, rows: Sequence[Sampling]) -> 'RowSampling':
    """Returns the options of rows."""
    temperature, top_k, top_p, penalty = zip(*map(dataclasses.astuple, rows), strict=True)
    real = lambda values: np.array(values, np.float32)
    return cls(real(temperature), np.array(top_k, np.int32), real(top_p), real(penalty))


def adjust(logits: jax.Array, seen: jax.Array, sampling: RowSampling) -> jax.Array:
  """Returns the adjusted logits, float32 [B, V], whose softmax is drawn from.

  The order is that of Hugging Face's generate: penalty, temperature, top_k, top_p; a greedy row
  gets the first alone. Sorts only if a row asks for top_k or top_p.

  Args:
    logits: [B, V].
    seen: bool [B, V], the tokens that each row contains.
    sampling: the options.
  """
  penalty, temperature = sampling.repetition_penalty[:, None], sampling.temperature[:, None]
  logits = logits.astype(jnp.float32)
  penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
  scaled = jnp.where(seen, penalized, logits) / jnp.where(temperature > 0, temperature, 1)
  cuts = (sampling.temperature > 0) & ((sampling.top_k > 0) | (sampling.top_p < 1))
  cut = lambda x: jnp.where(cuts[:, None], _cut(x, sampling), x)
  return jax.lax.cond(jnp.any(cuts), cut, lambda x: x, scaled)


def draw(logits: jax.Array, seen: jax.Array, keys: jax.Array, sampling: RowSampling) -> jax.Array:
  """Draws the next token of each row, int32 [B]; the likeliest where the temperature is 0.

  Args:
    logits: [B, V].
    seen: bool [B, V], see `adjust`.
    keys: uint32 [B, 2], one key per row.
    sampling: how to draw.
  """
  logits = adjust(logits, seen, sampling)
  draws, best = sampling.temperature > 0, logits.argmax(-1).astype(jnp.int32)
  some = lambda: jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
  return jnp.where(draws, jax.lax.cond(jnp.any(draws), some, lambda: best), best)


def _cut(logits: jax.Array, sampling: RowSampling) -> jax.Array:
  """Applies top_k and top_p of each row."""
  vocab_size = logits.shape[-1]
  k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, vocab_size), vocab_size)[:, None]
  best = -jnp.sort(-logits, axis=-1)
  among = jnp.arange(vocab_size)[None, :] < k
  least = jnp.where(among, best, jnp.inf).min(-1, keepdims=True)
  probability = jax.nn.softmax(jnp.where(among, best, -jnp.inf), axis=-1)
  top_p = sampling.top_p[:, None]
  # A token is kept while those before it have less than top_p together.
  kept = among & (jnp.cumsum(probability, axis=-1) - probability < top_p)
  threshold = jnp.where(kept, best, jnp.inf).min(-1, keepdims=True)
  # Of equal logits at the edge only as many stay as top_p needs, those of the lowest ids; those at
  # the edge of top_k all stay, as in Hugging Face's.
  edge, room = logits == threshold, (kept & (best == threshold)).sum(-1, keepdims=True)
  stays = (logits > threshold) | (edge & (jnp.cumsum(edge, axis=-1) <= room))
  return jnp.where(jnp.where(top_p < 1, stays, logits >= least), logits, MASK_VALUE)
