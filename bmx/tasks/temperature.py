"""Probabilities of a classifier at a temperature, which validation data fitted."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, Noise, Variables
from bmx.tasks.common import Wrapper

LEAST = 1e-30  # of a probability, as in `reliability.at_temperature`


@dataclasses.dataclass(frozen=True)
class Tempered(Wrapper):
  """A classification whose logits are divided by a temperature: other confidence, same classes.

  Attributes:
    temperature: above 0; such as `reliability.fit_temperature` returns it.

  Source: Guo et al. 2017.

  Raises:
    InputError: a temperature that is not above 0.
  """

  temperature: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    check_number('temperature', self.temperature, above=0)

  def predict(self: Any, variables: Variables, batch: Batch, noise: Noise) -> dict[str, Array]:
    """Returns the predictions of the inner task, their probabilities at the temperature."""
    found = self.inner.predict(variables, batch, noise)
    if 'probability' in found and found['probability'].ndim == 2:
      return found | {'probability': self._scaled(found['probability'])}
    if 'score' in found and found['score'].ndim == 1:
      two = jnp.stack([1 - found['score'], found['score']], 1)
      return found | {'score': self._scaled(two)[:, 1]}
    raise InputError('temperature: expected a task that predicts one class for each example, not '
                     f'{", ".join(sorted(found))}')  # fmt: skip

  def _scaled(self, probability: Array) -> Array:
    """Log probabilities are logits but for a constant: [B, C] -> [B, C]."""
    log = jnp.log(jnp.maximum(probability.astype(jnp.float32), LEAST))
    return jax.nn.softmax(log / self.temperature)
