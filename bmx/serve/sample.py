"""From scores to a token: pure functions of arrays."""

import dataclasses

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.ops.masks import MASK_VALUE


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn.

  Attributes:
    temperature: divides the scores; 0 takes the likeliest token and draws nothing.
    top_k: only so many of the likeliest tokens; 0 is all.
    top_p: of these, only the fewest that have this probability together (Holtzman et al. 2020).
    penalty: divides positive scores of tokens that the row has already, and multiplies negative
      ones (Keskar et al. 2019); 1 is none.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  penalty: float = 1.0

  def __post_init__(self):
    if self.temperature < 0 or self.top_k < 0 or self.penalty <= 0 or not 0 < self.top_p <= 1:
      raise InputError(
        f'generate: temperature={self.temperature} (0 or more), top_k={self.top_k} (0 or more), '
        f'top_p={self.top_p} (above 0, at most 1), penalty={self.penalty} (above 0)'
      )


def adjust(logits: jax.Array, seen: jax.Array, how: Sampling) -> jax.Array:
  """Scores as they are drawn by: logits [B, V], seen bool [B, V] -> float32 [B, V].

  In the order of Hugging Face's generate: penalty, temperature, top_k, top_p.
  """
  logits = logits.astype(jnp.float32)
  if how.penalty != 1:
    punished = jnp.where(logits > 0, logits / how.penalty, logits * how.penalty)
    logits = jnp.where(seen, punished, logits)
  if not how.temperature:
    return logits
  logits /= how.temperature
  vocab = logits.shape[-1]
  if not how.top_k and how.top_p == 1:
    return logits
  best = jax.lax.top_k(logits, min(how.top_k or vocab, vocab))[0]
  share = jax.nn.softmax(best, axis=-1)
  # A token stays while those before it have less than top_p together.
  stays = jnp.cumsum(share, axis=-1) - share < how.top_p
  least = jnp.where(stays, best, jnp.inf).min(-1, keepdims=True)
  return jnp.where(logits >= least, logits, MASK_VALUE)


def draw(logits: jax.Array, seen: jax.Array, keys: jax.Array, how: Sampling) -> jax.Array:
  """The next token of each row: logits [B, V], a key for each row [B, 2] -> int32 [B]."""
  logits = adjust(logits, seen, how)
  if not how.temperature:
    return logits.argmax(-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
