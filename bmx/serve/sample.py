"""Sampling of a token from logits: pure functions of arrays."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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


def adjust(logits: jax.Array, seen: jax.Array, sampling: Sampling) -> jax.Array:
  """Returns the adjusted logits, float32 [B, V], whose softmax is drawn from.

  The order is that of Hugging Face's generate: penalty, temperature, top_k, top_p.

  Args:
    logits: [B, V].
    seen: bool [B, V], the tokens that each row contains.
    sampling: the options.
  """
  logits = logits.astype(jnp.float32)
  if sampling.repetition_penalty != 1:
    penalty = sampling.repetition_penalty
    penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(seen, penalized, logits)
  if not sampling.temperature:
    return logits
  logits /= sampling.temperature
  vocab_size = logits.shape[-1]
  if not sampling.top_k and sampling.top_p == 1:
    return logits
  best = jax.lax.top_k(logits, min(sampling.top_k or vocab_size, vocab_size))[0]
  if sampling.top_p == 1:  # equal logits at the edge of top_k all stay, as in Hugging Face's
    return jnp.where(logits >= best[:, -1:], logits, MASK_VALUE)
  probability = jax.nn.softmax(best, axis=-1)
  # A token is kept while those before it have less than top_p together.
  kept = jnp.cumsum(probability, axis=-1) - probability < sampling.top_p
  threshold = jnp.where(kept, best, jnp.inf).min(-1, keepdims=True)
  # Of equal logits at the edge only as many stay as top_p needs, those of the lowest ids.
  edge, room = logits == threshold, (kept & (best == threshold)).sum(-1, keepdims=True)
  stays = (logits > threshold) | (edge & (jnp.cumsum(edge, axis=-1) <= room))
  return jnp.where(stays, logits, MASK_VALUE)


def draw(logits: jax.Array, seen: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
  """Draws the next token of each row, int32 [B].

  Args:
    logits: [B, V].
    seen: bool [B, V], see `adjust`.
    keys: uint32 [B, 2], one key per row.
    sampling: how to draw.
  """
  logits = adjust(logits, seen, sampling)
  if not sampling.temperature:
    return logits.argmax(-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


class RowSampling(NamedTuple):
  """Options of `Sampling`, one of each per row: float32 [B], but `top_k` int32 [B]."""

  temperature: Any
  top_k: Any
  top_p: Any
  repetition_penalty: Any


def draw_rows(
  logits: jax.Array, seen: jax.Array, keys: jax.Array, sampling: RowSampling
) -> jax.Array:
  """Draws the next token of each row, int32 [B], each with options of its own, as `draw` does.

  Sorts only if a row asks for top_k or top_p, and draws only if one is not greedy.

  Args:
    logits: [B, V].
    seen: bool [B, V], see `adjust`.
    keys: uint32 [B, 2], one key per row.
    sampling: how to draw.
  """
  penalty, temperature = sampling.repetition_penalty[:, None], sampling.temperature[:, None]
  logits = logits.astype(jnp.float32)
  penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
  logits = jnp.where(seen, penalized, logits)
  scaled = logits / jnp.where(temperature > 0, temperature, 1)
  cuts = (sampling.top_k > 0) | (sampling.top_p < 1)
  scaled = jax.lax.cond((cuts & (sampling.temperature > 0)).any(), _cut, lambda x, _: x,
                        scaled, sampling)  # fmt: skip
  best = logits.argmax(-1).astype(jnp.int32)
  some = lambda: jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
  drawn = jax.lax.cond((temperature > 0).any(), some, lambda: best)
  return jnp.where(temperature[:, 0] > 0, drawn, best)


def _cut(logits: jax.Array, sampling: RowSampling) -> jax.Array:
  """Applies top_k and top_p of each row, as `adjust` does for all rows alike."""
  vocab_size = logits.shape[-1]
  k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, vocab_size), vocab_size)[:, None]
  best = -jnp.sort(-logits, axis=-1)
  among = jnp.arange(vocab_size)[None, :] < k
  least = jnp.where(among, best, jnp.inf).min(-1, keepdims=True)
  probability = jax.nn.softmax(jnp.where(among, best, -jnp.inf), axis=-1)
  top_p = sampling.top_p[:, None]
  kept = among & (jnp.cumsum(probability, axis=-1) - probability < top_p)
  threshold = jnp.where(kept, best, jnp.inf).min(-1, keepdims=True)
  edge, room = logits == threshold, (kept & (best == threshold)).sum(-1, keepdims=True)
  stays = (logits > threshold) | (edge & (jnp.cumsum(edge, axis=-1) <= room))
  return jnp.where(jnp.where(top_p < 1, stays, logits >= least), logits, MASK_VALUE)
