"""Gaussian noise on the sum of clipped gradients, from a key that no run directory holds."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Array, Batch, Grads, Noise, Variables
from bmx.privacy.clip import COLLECTION
from bmx.train.gradients import GradWrapper


class Scales(NamedTuple):
  """Standard deviation of the noise of each released sum, in units of what an example adds at most.

  Attributes:
    gradient: of the sum of gradients, over the clip.
    loss: of the sum of losses, over `loss_bound`.
    within: of the sum of ±½ of an adaptive clip, over ½; 0 without one.
  """

  gradient: float
  loss: float
  within: float = 0.0


@dataclasses.dataclass(frozen=True)
class Noised(GradWrapper):
  """The outermost GradFn of private training: adds noise to all that a step releases of its batch.

  The guard, the optimizer, averages and log lines get noised values only. The divisor is the
  expected number of examples, since their number is private. An adaptive clip follows a quantile of
  the norms: clip · exp(-rate · (noised share within the clip - quantile)), once a step.

  Source: Abadi et al. 2016; Andrew et al. 2021, algorithm 1.

  Attributes:
    inner: `Clipped`, or a wrapper around it such as `Accumulate`.
    clip: as `Clipped` has it.
    expected: examples of a batch, on average.
    scales: of the noise.
    loss_bound: as `Clipped` has it.
    quantile: share of the norms that an adaptive clip leaves as they are; 0: the clip is fixed.
    rate: of an adaptive clip, for each step.
  """

  clip: float
  expected: float
  scales: Scales
  loss_bound: float = 10.0
  quantile: float = 0.0
  rate: float = 0.2

  def __call__(self, variables: Variables, batch: Batch, noise: Noise) -> Grads:
    """Returns the noised sum with the expected count, and the noised loss.

    Raises InputError if the step has no secret.
    """
    if noise.secret is None:
      raise InputError('privacy: expected a step with a secret; pass Secret.key to the dispatch')
    grads = self.inner(variables, batch, noise)
    adaptive = bool(self.quantile)
    bound = variables[COLLECTION]['clip'] if adaptive else self.clip
    of_loss, of_within, key = jax.random.split(jax.random.fold_in(noise.secret, noise.step), 3)
    total = add_noise(grads.sum, key, self.scales.gradient * bound)
    loss = grads.metrics['loss'][0]
    loss += self.scales.loss * self.loss_bound * jax.random.normal(of_loss)
    expected, collections = jnp.float32(self.expected), dict(grads.collections)
    if adaptive:
      collections[COLLECTION] = self._moved(collections[COLLECTION], of_within)
    return Grads(total, expected, {'loss': jnp.stack([loss, expected])}, collections)

  def _moved(self, state: Variables, key: Array) -> Variables:
    """Returns the clip of the next step."""
    within = state['within'] + self.scales.within / 2 * jax.random.normal(key)
    share = within / self.expected + 0.5
    clip = state['clip'] * jnp.exp(-self.rate * (share - self.quantile))
    return {'clip': clip, 'within': jnp.zeros_like(state['within'])}


def add_noise(values: Variables, key: Array, deviation: Array | float) -> Variables:
  """Adds independent Gaussian noise of one standard deviation to every number of a tree."""
  leaves, structure = jax.tree.flatten(values)
  keys = jax.random.split(key, len(leaves))
  noised = [
    g + (deviation * jax.random.normal(k, g.shape, jnp.float32)).astype(g.dtype)
    for k, g in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, noised)
