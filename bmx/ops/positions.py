"""Positions as functions of arrays."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

ROPE_SCALING = (
  'factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings',
)  # fmt: skip


def rotary(
  x: jax.Array,
  positions: jax.Array,
  theta: float = 10_000.0,
  rope_scaling: Mapping[str, float] | None = None,
) -> jax.Array:
  """Rotates pairs (i, i + H/2) of each head by an angle that grows with the position.

  x [B, T, N, H], positions int [B, T] -> [B, T, N, H], in x's dtype; angles are float32.
  `rope_scaling`: the arguments of `scaled`. Source: Su et al. 2021, eq. 34, in the half-split
  layout of Llama's published weights.
  """
  half = x.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if rope_scaling:
    frequency = scaled(frequency, **rope_scaling)
  angle = positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
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


def sinusoidal(positions: jax.Array, width: int) -> jax.Array:
  """positions int [B, T] -> float32 [B, T, D]: sines in the even columns, cosines in the odd.

  Source: Vaswani et al. 2017, section 3.5.
  """
  frequency = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angle = positions[:, :, None].astype(jnp.float32) * frequency[None, None, :]
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*positions.shape, width)
