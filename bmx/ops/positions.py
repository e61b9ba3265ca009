"""Positions as functions of arrays."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError

# Kind of scaling, as config.json of transformers calls it -> the arguments that define it.
ROPE_SCALING = {
  'default': (),
  'linear': ('factor',),
  'llama3': (
    'factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings',
  ),
  'yarn': (
    'factor', 'original_max_position_embeddings', 'beta_fast', 'beta_slow', 'truncate',
    'attention_factor',
  ),
}  # fmt: skip


def rope_kind(rope_scaling: Mapping[str, float]) -> str:
  """Returns the kind of scaling that these arguments define. Raises InputError for others.

  >>> rope_kind({'factor': 2.0})
  'linear'
  """
  for kind, names in ROPE_SCALING.items():
    if set(names) == set(rope_scaling):
      return kind
  kinds = '; '.join(', '.join(names) for names in ROPE_SCALING.values() if names)
  raise InputError(f'rope_scaling={dict(rope_scaling)}: expected the names {kinds}')


def rotary(
  x: jax.Array,
  positions: jax.Array,
  theta: float = 10_000.0,
  rope_scaling: Mapping[str, float] | None = None,
) -> jax.Array:
  """Rotates pairs (i, i + H/2) of each head by an angle that grows with the position.

  x [B, T, N, H], positions int [B, T] -> [B, T, N, H], in x's dtype; angles are float32.
  `rope_scaling`: the arguments of a kind of `ROPE_SCALING`. Source: Su et al. 2021, eq. 34, in the
  half-split layout of Llama's published weights.
  """
  half = x.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  kind, scaling = rope_kind(rope_scaling or {}), dict(rope_scaling or {})
  size = scaling.pop('attention_factor', 1.0)
  if kind == 'linear':
    frequency /= scaling['factor']
  if kind == 'llama3':
    frequency = scaled(frequency, **scaling)
  if kind == 'yarn':
    frequency = yarn(frequency, theta, **scaling)
  angle = positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  if size != 1.0:
    cos, sin = size * cos, size * sin
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def scaled(
  frequency: jax.Array,
  *,
  factor: float,
  low_freq_factor: float,
  high_freq_factor: float,
  original_max_position_embeddings: float,
) -> jax.Array:
  """Scales rotary frequencies of a model that was extended beyond its training length.

  Waves with fewer than `low_freq_factor` turns in the original length rotate `factor` times slower,
  waves with more than `high_freq_factor` turns as before, those between a mixture of the two.

  Args:
    frequency: float32 [H/2], radians per position.
    factor: by which low frequencies are divided.
    low_freq_factor: turns in the original length.
    high_freq_factor: turns in the original length.
    original_max_position_embeddings: length of the sequences in training, in positions.

  Returns:
    float32 [H/2], radians per position.

  Source: Llama 3.1 (Dubey et al. 2024), as published with its weights ('rope_type': 'llama3').
  """
  turns = original_max_position_embeddings * frequency / (2 * jnp.pi)
  share = jnp.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
  return (1 - share) * frequency / factor + share * frequency


def yarn(
  frequency: jax.Array,
  theta: float,
  *,
  factor: float,
  original_max_position_embeddings: float,
  beta_fast: float,
  beta_slow: float,
  truncate: float,
) -> jax.Array:
  """Scales rotary frequencies by a ramp over the dimensions of a head.

  Args:
    frequency: float32 [H/2], radians per position.
    theta: base of the frequencies.
    factor: by which the frequencies at the end of the ramp are divided.
    original_max_position_embeddings: length of the sequences in training, in positions.
    beta_fast: turns in the original length where the ramp begins.
    beta_slow: turns in the original length where it ends.
    truncate: 1 if the ends of the ramp are rounded to whole dimensions, else 0.

  Returns:
    float32 [H/2], radians per position.

  Source: Peng et al. 2023, YaRN, section 3.2, with the bounds of transformers.
  """
  half = len(frequency)

  def dimension(turns: float) -> float:
    turn = original_max_position_embeddings / (turns * 2 * math.pi)
    return half * math.log(turn) / math.log(theta)

  low, high = dimension(beta_fast), dimension(beta_slow)
  if truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, 2 * half - 1)
  high += 0.001 * (low == high)  # as transformers does
  ramp = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / (high - low), 0.0, 1.0)
  return ramp * frequency / factor + (1 - ramp) * frequency


def sinusoidal(positions: jax.Array, width: int, halves: bool = False) -> jax.Array:
  """Maps positions int [B, T] to float32 [B, T, D]: sines in the even columns, cosines in the odd.

  `halves`: all sines in the first D / 2 columns, then the cosines, as Marian has them.
  Source: Vaswani et al. 2017, section 3.5.
  """
  frequency = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angle = positions[:, :, None].astype(jnp.float32) * frequency[None, None, :]
  if halves:
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*positions.shape, width)


def relative_buckets(distance: jax.Array, buckets: int, most: int, causal: bool) -> jax.Array:
  """Maps distances (key position - query position) to buckets, int32 of the same shape.

  Half of the buckets hold one distance each; the others hold ranges that grow as a logarithm up to
  `most`, beyond which all is one bucket. Without `causal`, half of the buckets are for keys behind
  the query. Source: Raffel et al. 2020, section 2.1, with the rounding of transformers.
  """
  first = jnp.zeros_like(distance)
  if not causal:
    buckets //= 2
    first = jnp.where(distance > 0, buckets, 0)
  size = jnp.maximum(-distance, 0) if causal else jnp.abs(distance)
  exact = buckets // 2
  ratio = jnp.log(jnp.maximum(size, 1) / exact) / math.log(most / exact)
  far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
  return first + jnp.where(size < exact, size, jnp.minimum(far, buckets - 1))
