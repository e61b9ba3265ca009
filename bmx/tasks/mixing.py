"""Mixup and CutMix: each example of a batch is mixed with the one before it, and so is its label.

The loss is that of soft targets: share · loss(label) + (1 - share) · loss(label of the other one),
each with the weight of its own example. Shares are drawn once for a batch, from the step's key.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Array, Batch, Noise

LABEL, WEIGHTS, SHARE = 'mixed_label', 'mixed_weights', 'mixed_share'


def mix(batch: Batch, key: str, noise: Noise, mixup: float, cutmix: float) -> Batch:
  """Mixes the inputs of a batch; where both kinds are wanted, each has half of the batches.

  An example is mixed unless it, or the other one, has weight 0.

  Args:
    batch: inputs, `label` int [B] and `weights` [B].
    key: of the inputs in the batch, float [B, ...].
    noise: of the step.
    mixup: of Beta(mixup, mixup), the distribution of shares; 0: without.
    cutmix: of Beta(cutmix, cutmix), the distribution of shares of the area; 0: without.

  Returns:
    The batch with mixed inputs, and `mixed_label`, `mixed_weights` and `mixed_share` [B].

  Raises:
    InputError: CutMix of inputs that are not images.

  Source: Zhang et al. 2018 (Mixup), Yun et al. 2019 (CutMix).
  """
  inputs: Any = batch[key]
  if cutmix and inputs.ndim != 4:
    raise InputError(f'task.cutmix={cutmix}: expected images [B, I, J, C], not {key} of shape '
                     f'{inputs.shape}; use task.mixup')  # fmt: skip
  kind, drawn, place = jax.random.split(noise.key, 3)
  other = jnp.roll(inputs, 1, 0)
  if cutmix and mixup:
    pick = jax.random.bernoulli(kind)
    blended, cut = _mixup(drawn, inputs, other, mixup), _cutmix(drawn, place, inputs, other, cutmix)
    mixed, share = (jnp.where(pick, a, b) for a, b in zip(blended, cut, strict=True))
  elif cutmix:
    mixed, share = _cutmix(drawn, place, inputs, other, cutmix)
  else:
    mixed, share = _mixup(drawn, inputs, other, mixup)
  weights = jnp.roll(batch['weights'], 1)
  both = (weights > 0) & (batch['weights'] > 0)
  return batch | {
    key: jnp.where(both.reshape(-1, *[1] * (inputs.ndim - 1)), mixed, inputs),
    LABEL: jnp.roll(batch['label'], 1),
    WEIGHTS: weights,
    SHARE: jnp.where(both, share, 1.0),
  }


def _mixup(key: Array, inputs: Array, other: Array, alpha: float) -> tuple[Array, Array]:
  share = jax.random.beta(key, alpha, alpha).astype(inputs.dtype)
  return share * inputs + (1 - share) * other, share


def _cutmix(
  key: Array, place: Array, inputs: Array, other: Array, alpha: float
) -> tuple[Array, Array]:
  """Replaces a rectangle; the share is what of the area remains, after cuts at the borders."""
  sides = jnp.array(inputs.shape[1:3])
  half = (0.5 * jnp.sqrt(1 - jax.random.beta(key, alpha, alpha)) * sides).astype(int)
  center = jax.random.randint(place, (2,), 0, sides)
  low, high = jnp.maximum(center - half, 0), jnp.minimum(center + half, sides)
  rows, columns = (jnp.arange(n) for n in inputs.shape[1:3])
  of_rows = (rows >= low[0]) & (rows < high[0])
  of_columns = (columns >= low[1]) & (columns < high[1])
  inside = of_rows[:, None] & of_columns[None]
  share = 1 - (high - low).prod() / sides.prod()
  mixed = jnp.where(inside[None, :, :, None], other, inputs)
  return mixed, share.astype(inputs.dtype)
